// Allocates slices of known sizes, each size in a function of its own, for as many seconds as it is told, while Go's own profiler
// chooses one for each 64 KiB.
package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"
)

var kept []byte

//go:noinline
func smallHere() {
	kept = make([]byte, 400)
}

//go:noinline
func largeHere() {
	kept = make([]byte, 2000)
}

//go:noinline
func hugeHere() {
	kept = make([]byte, 200000)
}

func main() {
	runtime.MemProfileRate = 64 << 10
	seconds, _ := strconv.ParseFloat(os.Args[1], 64)
	fmt.Println("ready")
	end := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	small, large, huge := 0, 0, 0
	for rounds := 0; time.Now().Before(end); rounds++ {
		for i := 0; i < 20; i++ {
			smallHere()
			small += 400
			largeHere()
			large += 2000
		}
		if rounds%10 == 0 {
			hugeHere()
			huge += 200000
		}
		time.Sleep(time.Millisecond)
	}
	// Whoever asks for it has it linked in.
	chosen, _ := runtime.MemProfile(nil, true)
	fmt.Printf("{\"small\": %d, \"large\": %d, \"huge\": %d, \"chosen\": %d}\n", small, large, huge, chosen)
}
