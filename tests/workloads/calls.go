// Burns CPU in C that Go calls.
//
// Usage: calls SECONDS. Prints `ready`, then the truth as one JSON line: how often it called.
package main

/*
static unsigned long long burn(unsigned long long rounds) {
	unsigned long long value = 1;
	while (rounds--)
		value = value * 6364136223846793005ull + 1442695040888963407ull;
	return value;
}
*/
import "C"

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

//go:noinline
func caller() uint64 {
	return uint64(C.burn(3000000))
}

func main() {
	seconds, _ := strconv.ParseFloat(os.Args[1], 64)
	fmt.Println("ready")
	end := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	calls, sum := 0, uint64(0)
	for time.Now().Before(end) {
		sum += caller()
		calls++
	}
	fmt.Printf("{\"calls\": %d, \"sum\": %d}\n", calls, sum)
}
