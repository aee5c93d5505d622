// Allocates slices of known sizes, each size in a function of its own, for as many seconds as it is told.
package main

import (
	"fmt"
	"os"
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

func main() {
	seconds, _ := strconv.ParseFloat(os.Args[1], 64)
	fmt.Println("ready")
	end := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	small, large := 0, 0
	for time.Now().Before(end) {
		for i := 0; i < 20; i++ {
			smallHere()
			small += 400
			largeHere()
			large += 2000
		}
		time.Sleep(time.Millisecond)
	}
	fmt.Printf("{\"small\": %d, \"large\": %d}\n", small, large)
}
