package qmp

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"testing"
	"time"
)

func TestCommandsAndEvents(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	const event = `{"event": "STOP", "data": {"n": 1}, "timestamp": {"seconds": 1790000000, "microseconds": 250000}}` + "\r\n"
	testEnd, qemuEnd := net.Pipe()
	go func() {
		defer qemuEnd.Close()
		io.WriteString(qemuEnd, `{"QMP": {"version": {}}}`+"\r\n")
		commands := json.NewDecoder(qemuEnd)
		for _, reply := range []string{
			event + `{"return": {"running": true}, "id": 1}`,
			`{"error": {"class": "GenericError", "desc": "Device 'nic9' not found"}, "id": 2}`,
		} {
			var command Request
			if commands.Decode(&command) != nil {
				return
			}
			io.WriteString(qemuEnd, reply+"\r\n")
		}
	}()
	c := New(testEnd)
	defer c.Close()
	if result, err := c.Execute(ctx, "query-status", nil); err != nil || string(result) != `{"running": true}` {
		t.Errorf("result %s, %v", result, err)
	}
	got, err := c.Await(ctx, 0, func(e Event) bool { return e.Name == "STOP" })
	if want := time.UnixMilli(1790000000250); err != nil || !got.At.Equal(want) || string(got.Data) != `{"n": 1}` {
		t.Errorf("event %+v, %v", got, err)
	}
	if _, err := c.Execute(ctx, "device_del", map[string]any{"id": "nic9"}); err == nil || err.Error() != "device_del: Device 'nic9' not found" {
		t.Errorf("error %v", err)
	}
	// QEMU ends.
	if _, err := c.Await(ctx, 1, func(Event) bool { return true }); err != errEnded {
		t.Errorf("error %v, want %v", err, errEnded)
	}
	if _, err := c.Execute(ctx, "stop", nil); err == nil {
		t.Error("a QEMU that has ended obeys")
	}
}
