// Calls a function on goroutines that sleep inside it, so that most calls return on another thread than they began on, and
// whose stacks grow in every third call, so that they return at another address.
//
// Usage: latency CALLS. Prints `ready`, waits until the function has a probe, which it sees in its own code, and prints the
// truth as one JSON line.
package main

import (
	"fmt"
	"os"
	"reflect"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

const workers = 16

var total, sink atomic.Int64

//go:noinline
func grow(depth int) int {
	var room [512]byte
	room[depth%512] = byte(depth)
	if depth == 0 {
		return int(room[0])
	}
	return grow(depth-1) + int(room[depth%512])
}

//go:noinline
func work(call int) int {
	time.Sleep(time.Millisecond)
	if call%3 == 0 {
		return grow(200)
	}
	return call
}

// Whether a probe is within the first bytes of a function.
func probed(function any) bool {
	code := reflect.ValueOf(function).Pointer()
	for offset := uintptr(0); offset < 16; offset++ {
		if *(*byte)(unsafe.Pointer(code + offset)) == 0xcc {
			return true
		}
	}
	return false
}

func main() {
	calls, _ := strconv.Atoi(os.Args[1])
	fmt.Println("ready")
	for end := time.Now().Add(time.Minute); !probed(work); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			os.Exit(1)
		}
	}
	var all sync.WaitGroup
	for worker := 0; worker < workers; worker++ {
		all.Add(1)
		go func() {
			defer all.Done()
			for call := 0; call < calls; call++ {
				start := time.Now()
				sink.Add(int64(work(call)))
				total.Add(int64(time.Since(start)))
			}
		}()
	}
	all.Wait()
	fmt.Printf("{\"calls\": %d, \"total_ns\": %d, \"sum\": %d}\n", workers*calls, total.Load(), sink.Load())
}
