// Sends the same requests to an HTTP server again and again, from a few connections at once.
//
// Usage: load SECONDS CONNECTIONS URL [BODY]. Prints `ready` after the first answer, then the truth as one JSON line: how
// many requests were answered.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// ask sends one request; whether it was answered well.
func ask(client *http.Client, url, body string) bool {
	var response *http.Response
	var err error
	if body == "" {
		response, err = client.Get(url)
	} else {
		response, err = client.Post(url, "application/json", strings.NewReader(body))
	}
	if err != nil {
		return false
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return err == nil && response.StatusCode == http.StatusOK
}

func main() {
	seconds, _ := strconv.ParseFloat(os.Args[1], 64)
	connections, _ := strconv.Atoi(os.Args[2])
	url, body := os.Args[3], ""
	if len(os.Args) > 4 {
		body = os.Args[4]
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections}}
	for !ask(client, url, body) {
		time.Sleep(50 * time.Millisecond)
	}
	fmt.Println("ready")
	end := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	var answered, refused atomic.Int64
	var group sync.WaitGroup
	for index := 0; index < connections; index++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for time.Now().Before(end) {
				if ask(client, url, body) {
					answered.Add(1)
				} else {
					refused.Add(1)
				}
			}
		}()
	}
	group.Wait()
	fmt.Printf("{\"answered\": %d, \"refused\": %d}\n", answered.Load(), refused.Load())
}
