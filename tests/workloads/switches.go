// Has the runtime work on the system's stack for it: to tell the time, to grow stacks, to allocate memory.
//
// Usage: switches SECONDS. Prints `ready`, then the truth as one JSON line: how often it did each.
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

var sink byte

//go:noinline
func clock(rounds int) {
	for index := 0; index < rounds; index++ {
		sink += byte(time.Now().Nanosecond())
	}
}

// deep needs more stack than a goroutine begins with.
//
//go:noinline
func deep(depth int) byte {
	var local [512]byte
	local[depth&511] = byte(depth)
	if depth == 0 {
		return local[depth]
	}
	return deep(depth-1) + local[(depth+1)&511]
}

//go:noinline
func grow(rounds int) {
	done := make(chan byte)
	for index := 0; index < rounds; index++ {
		go func() { done <- deep(200) }()
		sink += <-done
	}
}

//go:noinline
func allocate(rounds int) {
	for index := 0; index < rounds; index++ {
		memory := make([]byte, 128<<10)
		memory[index&1023] = 1
		sink += memory[7]
	}
}

func main() {
	seconds, _ := strconv.ParseFloat(os.Args[1], 64)
	fmt.Println("ready")
	end := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	rounds := 0
	for time.Now().Before(end) {
		clock(20000)
		grow(20)
		allocate(100)
		rounds++
	}
	fmt.Printf("{\"rounds\": %d}\n", rounds)
}
