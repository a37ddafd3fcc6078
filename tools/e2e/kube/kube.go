// Package kube has requests to the Kubernetes API for tests: one call is one request, with no cache, no retry and no
// rate limit, so that what is seen is what the API server did.
package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// Kinds of patches.
const (
	JSONPatch  = types.JSONPatchType
	MergePatch = types.MergePatchType
)

// Client sends requests to an API server.
type Client struct{ rest *rest.RESTClient }

// New returns a client with the address and the rights of a configuration.
func New(config *rest.Config) (*Client, error) {
	config.QPS = -1
	config.WarningHandler = rest.NoWarnings{}
	config.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	client, err := rest.UnversionedRESTClientFor(config)
	return &Client{client}, err
}

// Request begins a request to a path, such as /api/v1/namespaces/default/pods.
func (c *Client) Request(method, path string) *rest.Request {
	return c.rest.Verb(method).AbsPath(path).MaxRetries(0)
}

// Refusal is the API server's refusal of a request.
type Refusal struct {
	Request string
	Status  metav1.Status
}

func (e *Refusal) Error() string { return e.Request + ": " + e.Status.Message }

func refusal(request *rest.Request, err error) error {
	var status *apierrors.StatusError
	if errors.As(err, &status) {
		return &Refusal{request.URL().Path, status.ErrStatus}
	}
	return err
}

// IsNotFound says whether an error is the API server's that there is no such object.
func IsNotFound(err error) bool {
	var refused *Refusal
	return errors.As(err, &refused) && refused.Status.Code == http.StatusNotFound
}

// Do sends a request, with a body unless that is nil, and returns the answer. A refusal is a *Refusal.
func Do[T any](ctx context.Context, request *rest.Request, body any) (*T, error) {
	if body != nil {
		content, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		request.Body(content)
	}
	result := request.Do(ctx)
	if err := result.Error(); err != nil {
		return nil, refusal(request, err)
	}
	content, err := result.Raw()
	if err != nil {
		return nil, err
	}
	out := new(T)
	return out, json.Unmarshal(content, out)
}

// Get returns the object or the list at a path.
func Get[T any](ctx context.Context, c *Client, path string) (*T, error) {
	return Do[T](ctx, c.Request(http.MethodGet, path), nil)
}

// Create stores an object in the collection at a path, and returns it as stored.
func Create[T any](ctx context.Context, c *Client, path string, object *T) (*T, error) {
	return Do[T](ctx, c.Request(http.MethodPost, path), object)
}

// DryRun is Create with the whole of admission and validation, and nothing stored.
func DryRun[T any](ctx context.Context, c *Client, path string, object *T) (*T, error) {
	return Do[T](ctx, c.Request(http.MethodPost, path).Param("dryRun", metav1.DryRunAll), object)
}

// Patch changes the object at a path.
func (c *Client) Patch(ctx context.Context, path string, kind types.PatchType, patch any) error {
	_, err := Do[any](ctx, c.Request(http.MethodPatch, path).SetHeader("Content-Type", string(kind)), patch)
	return err
}

// Delete deletes the object at a path, which may take time after this returns.
func (c *Client) Delete(ctx context.Context, path string) error {
	_, err := Do[any](ctx, c.Request(http.MethodDelete, path), nil)
	return err
}

// watchOne calls each with the events of the object of a name, until that says that it has seen enough.
func (c *Client) watchOne(ctx context.Context, collection, name, version string, each func(watch.EventType, json.RawMessage) (enough bool, err error)) error {
	request := c.Request(http.MethodGet, collection).Param("watch", "true").Param("fieldSelector", "metadata.name="+name)
	if version != "" {
		request.Param("resourceVersion", version)
	}
	body, err := request.Stream(ctx)
	if err != nil {
		return refusal(request, err)
	}
	defer body.Close()
	for events := json.NewDecoder(body); ; {
		var event struct {
			Type   watch.EventType
			Object json.RawMessage
		}
		if err := events.Decode(&event); err != nil {
			return err
		}
		if event.Type == watch.Error {
			return fmt.Errorf("the API server ends the watch: %s", event.Object)
		}
		if enough, err := each(event.Type, event.Object); enough || err != nil {
			return err
		}
	}
}

// Await watches the object of a name in a collection, which need not exist yet, until a state of it lacks
// nothing, and returns that state. It fails when the limit has passed, and then says what the last state lacks.
func Await[T any](ctx context.Context, c *Client, collection, name string, limit time.Duration, lacks func(*T) string) (*T, error) {
	last := "it does not exist"
	var object *T
	ctx, stop := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %s", limit))
	defer stop()
	err := c.watchOne(ctx, collection, name, "", func(kind watch.EventType, content json.RawMessage) (bool, error) {
		switch kind {
		case watch.Added, watch.Modified:
			object = new(T)
			if err := json.Unmarshal(content, object); err != nil {
				return false, err
			}
			last = lacks(object)
		case watch.Deleted:
			last = "it was deleted"
		}
		return last == "", nil
	})
	if err == nil {
		return object, nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return nil, fmt.Errorf("wait for %s/%s: %w: %s", collection, name, err, last)
}

// AwaitGone returns when there is no object of a name in a collection any more, or another one of that name.
func AwaitGone(ctx context.Context, c *Client, collection, name string, limit time.Duration) error {
	ctx, stop := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s/%s is still there after %s", collection, name, limit))
	defer stop()
	object, err := Get[metav1.PartialObjectMetadata](ctx, c, collection+"/"+name)
	if IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	err = c.watchOne(ctx, collection, name, object.ResourceVersion, func(kind watch.EventType, _ json.RawMessage) (bool, error) {
		return kind == watch.Deleted, nil
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Poll asks again and again until nothing is lacking: for what no event tells. It fails when the limit has passed, and
// then says what was lacking last. An error ends it at once.
func Poll(ctx context.Context, limit time.Duration, ask func(context.Context) (lacking string, err error)) error {
	const pause = 50 * time.Millisecond
	deadline := time.After(limit)
	for {
		lacking, err := ask(ctx)
		if lacking == "" || err != nil {
			return err
		}
		select {
		case <-time.After(pause):
		case <-deadline:
			return fmt.Errorf("not within %s: %s", limit, lacking)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
