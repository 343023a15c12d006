package n8n

import (
	"context"
	"io"
	"net/http"
	"time"
)

// maxBody is how much of an answer is read, in bytes.
const maxBody = 64 << 10

// half gives one question half of the time that is left, so that the next one
// still has some: without Redis n8n answers some paths late or not at all.
func half(ctx context.Context) (context.Context, context.CancelFunc) {
	if end, ok := ctx.Deadline(); ok {
		return context.WithTimeout(ctx, time.Until(end)/2)
	}
	return context.WithCancel(ctx)
}

// get sends one request.
func (n *N8N) get(ctx context.Context, method, path string) (status int, body string, err error) {
	ctx, cancel := half(ctx)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, n.options.URL+path, nil)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("User-Agent", "flymesh-probe")
	resp, err := n.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	return resp.StatusCode, string(b), err
}
