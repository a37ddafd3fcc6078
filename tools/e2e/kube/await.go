package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// Await watches the object of a name in a collection, which need not exist yet, until a state of it lacks
// nothing, and returns that state. It fails when the limit has passed, and then says what the last state lacks.
func Await[T any](ctx context.Context, c *Client, collection, name string, limit time.Duration, lacks func(*T) string) (*T, error) {
	last := "it does not exist"
	timeout := fmt.Errorf("not within %s", limit)
	ctx, stop := context.WithTimeoutCause(ctx, limit, timeout)
	defer stop()
	explain := func(err error) error {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("wait for %s/%s: %w: %s", collection, name, err, last)
	}

	query := url.Values{"watch": {"true"}, "fieldSelector": {"metadata.name=" + name}}
	response, err := c.send(ctx, Request{Method: http.MethodGet, Path: collection, Query: query})
	if err != nil {
		return nil, explain(err)
	}
	defer response.Body.Close()
	for events := json.NewDecoder(response.Body); ; {
		var event struct {
			Type   watch.EventType
			Object json.RawMessage
		}
		if err := events.Decode(&event); err != nil {
			return nil, explain(err)
		}
		switch event.Type {
		case watch.Added, watch.Modified:
			object := new(T)
			if err := json.Unmarshal(event.Object, object); err != nil {
				return nil, explain(err)
			}
			if last = lacks(object); last == "" {
				return object, nil
			}
		case watch.Deleted:
			last = "it was deleted"
		case watch.Error:
			return nil, explain(fmt.Errorf("the API server ends the watch: %s", event.Object))
		}
	}
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

// AwaitGone returns when there is no object of a name in a collection any more, or another one of that name.
func AwaitGone(ctx context.Context, c *Client, collection, name string, limit time.Duration) error {
	timeout := fmt.Errorf("%s/%s is still there after %s", collection, name, limit)
	ctx, stop := context.WithTimeoutCause(ctx, limit, timeout)
	defer stop()
	object, err := Get[metav1.PartialObjectMetadata](ctx, c, collection+"/"+name)
	if IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	query := url.Values{"watch": {"true"}, "fieldSelector": {"metadata.name=" + name}, "resourceVersion": {object.ResourceVersion}}
	response, err := c.send(ctx, Request{Method: http.MethodGet, Path: collection, Query: query})
	if err != nil {
		return err
	}
	defer response.Body.Close()
	for events := json.NewDecoder(response.Body); ; {
		var event struct{ Type watch.EventType }
		switch err := events.Decode(&event); {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		case event.Type == watch.Deleted:
			return nil
		}
	}
}
