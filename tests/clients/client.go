// Uploads a photo with Go's net/http for each line of standard input: client, url, token, category, file, filename, separated
// by tabs; the category "-" is none. Prints a line for each: client, version, status (0: no answer), body or error.
package main

import (
	"bufio"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"
)

func send(client, url, token, category, file, filename string) (int, string) {
	reader, writer := io.Pipe()
	form := multipart.NewWriter(writer)
	go func() {
		if category != "-" {
			form.WriteField("category", category)
		}
		part, err := form.CreateFormFile("image", filename)
		if err != nil {
			return // the answer came before the body was sent
		}
		if photo, err := os.Open(file); err == nil {
			io.Copy(part, photo)
			photo.Close()
		}
		form.Close()
		writer.Close()
	}()
	request, err := http.NewRequest("POST", url, reader)
	if err != nil {
		return 0, err.Error()
	}
	request.Header.Set("Content-Type", form.FormDataContentType())
	request.Header.Set("Authorization", "Bearer "+token)
	if strings.HasSuffix(client, "Expect") {
		request.Header.Set("Expect", "100-continue")
	}
	transport := &http.Transport{ExpectContinueTimeout: time.Minute}
	defer transport.CloseIdleConnections()
	answer, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, err.Error()
	}
	return answer.StatusCode, string(body)
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Split(lines.Text(), "\t")
		status, body := send(words[0], words[1], words[2], words[3], words[4], words[5])
		fmt.Printf("%s\t%s\t%d\t%s\n", words[0], runtime.Version(), status, body)
	}
}
