// Package kube is a client of the Kubernetes API, just large enough for checks: one call is one request, with
// no cache, no retry and no rate limit of its own, so that what is seen is what the API server did.
package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Media types of patches: RFC 6902 and RFC 7386.
const (
	JSONPatch  = "application/json-patch+json"
	MergePatch = "application/merge-patch+json"
)

// Client sends requests to an API server.
type Client struct {
	http   *http.Client
	server string // such as https://127.0.0.1:6443
}

// Request is one request to the API server. Only Method and Path are always needed.
type Request struct {
	Method string
	Path   string // such as /api/v1/namespaces/default/pods
	Query  url.Values
	// DryRun asks for the whole of admission and validation, and for nothing to be stored.
	DryRun bool
	// Body is sent as JSON.
	Body any
	// ContentType of the body, where it is a patch.
	ContentType string
	// User to impersonate, as a member of Groups.
	User   string
	Groups []string
}

// Error is the API server's refusal of a request.
type Error struct {
	Request string
	Status  metav1.Status
}

func (e *Error) Error() string { return e.Request + ": " + e.Status.Message }

// IsNotFound says whether an error is the API server's that there is no such object.
func IsNotFound(err error) bool {
	var refused *Error
	return errors.As(err, &refused) && refused.Status.Code == http.StatusNotFound
}

// Do sends a request and decodes the answer into out. A refusal is an *Error.
func (c *Client) Do(ctx context.Context, request Request, out any) error {
	response, err := c.send(ctx, request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(out); err != nil {
		return fmt.Errorf("answer to %s %s: %w", request.Method, request.Path, err)
	}
	return nil
}

// Get returns the object or the list at a path.
func Get[T any](ctx context.Context, c *Client, path string) (*T, error) {
	out := new(T)
	return out, c.Do(ctx, Request{Method: http.MethodGet, Path: path}, out)
}

// Create stores an object in the collection at a path, and returns it as stored.
func Create[T any](ctx context.Context, c *Client, path string, object *T) (*T, error) {
	out := new(T)
	return out, c.Do(ctx, Request{Method: http.MethodPost, Path: path, Body: object}, out)
}

// DryRun is Create with all its effects on the object and none on the cluster.
func DryRun[T any](ctx context.Context, c *Client, path string, object *T) (*T, error) {
	out := new(T)
	return out, c.Do(ctx, Request{Method: http.MethodPost, Path: path, Body: object, DryRun: true}, out)
}

// Patch changes the object at a path.
func (c *Client) Patch(ctx context.Context, path, contentType string, patch any) error {
	return c.Do(ctx, Request{Method: http.MethodPatch, Path: path, ContentType: contentType, Body: patch}, new(any))
}

// Delete deletes the object at a path, which may take time after this returns.
func (c *Client) Delete(ctx context.Context, path string) error {
	return c.Do(ctx, Request{Method: http.MethodDelete, Path: path}, new(any))
}

// Text returns what is at a path that is not an object, such as a log.
func (c *Client) Text(ctx context.Context, path string, query url.Values) (string, error) {
	response, err := c.send(ctx, Request{Method: http.MethodGet, Path: path, Query: query})
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	return string(content), err
}

// send returns the response if it is a success. The caller closes its body.
func (c *Client) send(ctx context.Context, request Request) (*http.Response, error) {
	var body io.Reader
	if request.Body != nil {
		content, err := json.Marshal(request.Body)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(content)
	}
	query := url.Values{}
	for name, values := range request.Query {
		query[name] = values
	}
	if request.DryRun {
		query.Set("dryRun", metav1.DryRunAll)
	}
	r, err := http.NewRequestWithContext(ctx, request.Method, c.server+request.Path+"?"+query.Encode(), body)
	if err != nil {
		return nil, err
	}
	if r.Header.Set("Content-Type", "application/json"); request.ContentType != "" {
		r.Header.Set("Content-Type", request.ContentType)
	}
	if request.User != "" {
		r.Header.Set("Impersonate-User", request.User)
	}
	for _, group := range request.Groups {
		r.Header.Add("Impersonate-Group", group)
	}
	response, err := c.http.Do(r)
	if err != nil {
		return nil, err
	}
	if response.StatusCode/100 != 2 {
		defer response.Body.Close()
		return nil, refusal(request, response)
	}
	return response, nil
}

func refusal(request Request, response *http.Response) error {
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	e := &Error{Request: request.Method + " " + request.Path}
	// Not every refusal is a Status: that of a log, for instance, is text.
	if err := json.Unmarshal(content, &e.Status); err != nil {
		e.Status.Message = string(content)
	}
	e.Status.Code = int32(response.StatusCode)
	return e
}
