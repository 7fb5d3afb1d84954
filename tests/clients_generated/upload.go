// A program that uses the package `photos`, a client that oapi-codegen has generated: it uploads, lists and reads the stream.
// Prints one JSON object. Usage: upload URL TOKEN PHOTO
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"strings"

	"example.com/generated/photos"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func upload(client *photos.ClientWithResponses, content []byte) *photos.AnalyzeQueueResponse {
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	check(form.WriteField("category", string(photos.Lego)))
	part, err := form.CreateFormFile("image", "photo.jpg")
	check(err)
	_, err = part.Write(content)
	check(err)
	check(form.Close())
	reply, err := client.AnalyzeQueueWithBodyWithResponse(context.Background(), nil, form.FormDataContentType(), &body)
	check(err)
	return reply
}

func finished(stream io.Reader) (event struct{ AssetId, Status string }) {
	lines, isEvent := bufio.NewScanner(stream), false
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if name == "event" {
			isEvent = strings.TrimSpace(value) == "asset_processed"
		} else if name == "data" && isEvent {
			check(json.Unmarshal([]byte(value), &event))
			return event
		}
	}
	panic(lines.Err())
}

func main() {
	url, token := os.Args[1], os.Args[2]
	picture, err := os.ReadFile(os.Args[3])
	check(err)
	sign := func(_ context.Context, request *http.Request) error {
		request.Header.Set("Authorization", "Bearer "+token)
		return nil
	}
	client, err := photos.NewClientWithResponses(url, photos.WithRequestEditorFn(sign))
	check(err)

	refused := upload(client, []byte("no photo"))
	events, err := client.OpenEventStream(context.Background(), nil)
	check(err)
	defer events.Body.Close()
	accepted := upload(client, picture)
	streamed := finished(events.Body)
	status, wait := photos.AssetStatusActive, 20
	list, err := client.ListAssetsWithResponse(context.Background(), &photos.ListAssetsParams{Status: &status})
	check(err)
	id := accepted.JSON202.Data.AssetId
	asset, err := client.GetAssetWithResponse(context.Background(), id, &photos.GetAssetParams{Wait: &wait})
	check(err)

	listed := []string{}
	for _, each := range list.JSON200.Data.Items {
		listed = append(listed, each.Id)
	}
	result, err := json.Marshal(map[string]any{
		"code":     refused.JSON400.Error.Code,
		"assetId":  id,
		"streamed": streamed.AssetId,
		"listed":   listed,
		"status":   asset.JSON200.Data.Status,
		"brand":    asset.JSON200.Data.AiMetadata.Brand.Value,
	})
	check(err)
	fmt.Println(string(result))
}
