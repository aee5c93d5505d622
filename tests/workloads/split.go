// Burns CPU in three functions with a known split under nested callers, one of them inlined into its caller.
//
// Usage: split SECONDS [pprof]. With `pprof`, the runtime's own CPU profile of the same time goes to the standard output's
// truth as its path. Prints `ready`, then the truth as one JSON line: thread CPU time of each, in ns.
package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

var sink uint64

const clockThreadCPU = 3

// cpuNS is the CPU time of this thread.
func cpuNS() int64 {
	var now syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockThreadCPU, uintptr(unsafe.Pointer(&now)), 0)
	return now.Nano()
}

// mix is small enough to be inlined wherever it is called.
func mix(value uint64) uint64 {
	value ^= value << 13
	value ^= value >> 7
	return value ^ value<<17
}

// T has a method, whose name is told with its receiver.
type T struct{ seed uint64 }

//go:noinline
func (t *T) Half(rounds int) {
	value := t.seed
	for range make([]struct{}, rounds) {
		value = mix(value)
	}
	sink += value
}

//go:noinline
func third(rounds int) {
	value := uint64(88172645463325252)
	for index := 0; index < rounds; index++ {
		value = mix(value)
	}
	sink += value
}

//go:noinline
func fifth(rounds int) {
	func() {
		value := uint64(362436069)
		for index := 0; index < rounds; index++ {
			value = value*6364136223846793005 + 1442695040888963407
		}
		sink += value
	}()
}

// work runs one round of all three, and adds up what each took.
//
//go:noinline
func work(spent *[3]int64) {
	start := cpuNS()
	(&T{seed: 42}).Half(1250000)
	first := cpuNS()
	third(750000)
	second := cpuNS()
	fifth(1200000)
	spent[0] += first - start
	spent[1] += second - first
	spent[2] += cpuNS() - second
}

//go:noinline
func nested(depth int, spent *[3]int64) {
	if depth > 0 {
		nested(depth-1, spent)
		runtime.KeepAlive(spent)
		return
	}
	work(spent)
}

func burn(end time.Time, result chan<- [3]int64) {
	runtime.LockOSThread()
	var spent [3]int64
	for time.Now().Before(end) {
		nested(5, &spent)
	}
	result <- spent
}

func main() {
	seconds, _ := strconv.ParseFloat(os.Args[1], 64)
	profile := ""
	if len(os.Args) > 2 {
		profile = os.Args[2]
		file, err := os.Create(profile)
		if err != nil {
			panic(err)
		}
		defer file.Close()
		if err := pprof.StartCPUProfile(file); err != nil {
			panic(err)
		}
	}
	fmt.Println("ready")
	result := make(chan [3]int64)
	end := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	go burn(end, result)
	spent := <-result
	if profile != "" {
		pprof.StopCPUProfile()
	}
	fmt.Printf("{\"half_ns\": %d, \"third_ns\": %d, \"fifth_ns\": %d}\n", spent[0], spent[1], spent[2])
}
