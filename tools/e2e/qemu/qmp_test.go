package qemu

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// play plays QEMU: it answers each command with the next of the replies, in which ID stands for the command's.
func play(t *testing.T, replies ...string) *monitor {
	t.Helper()
	testEnd, qemuEnd := net.Pipe()
	t.Cleanup(func() { qemuEnd.Close() })
	go func() {
		defer qemuEnd.Close()
		io.WriteString(qemuEnd, `{"QMP": {"version": {}}}`+"\n")
		commands := json.NewDecoder(qemuEnd)
		for _, reply := range append([]string{`{"return": {}, "id": ID}`}, replies...) {
			var command struct{ ID json.Number }
			if commands.Decode(&command) != nil {
				return
			}
			io.WriteString(qemuEnd, strings.ReplaceAll(reply, "ID", command.ID.String())+"\n")
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	m, err := openMonitor(ctx, testEnd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.close)
	return m
}

func TestCommandReturnsItsResult(t *testing.T) {
	m := play(t, `{"return": {"running": true}, "id": ID}`)
	result, err := m.execute(t.Context(), "query-status", nil)
	if err != nil || string(result) != `{"running": true}` {
		t.Errorf("result %s, %v", result, err)
	}
}

func TestCommandThatFailsSaysWhy(t *testing.T) {
	m := play(t, `{"error": {"class": "GenericError", "desc": "Device 'nic9' not found"}, "id": ID}`)
	_, err := m.execute(t.Context(), "device_del", map[string]any{"id": "nic9"})
	if err == nil || err.Error() != "qemu: device_del: Device 'nic9' not found" {
		t.Errorf("error %v", err)
	}
}

func TestEventIsFoundWhetherItCameBeforeOrAfterTheReply(t *testing.T) {
	const event = `{"event": "STOP", "data": {"n": 1}, "timestamp": {"seconds": 1790000000, "microseconds": 250000}}`
	const reply = `{"return": {}, "id": ID}`
	for name, lines := range map[string]string{"before": event + "\n" + reply, "after": reply + "\n" + event} {
		t.Run(name, func(t *testing.T) {
			m := play(t, lines)
			position := m.position()
			if _, err := m.execute(t.Context(), "stop", nil); err != nil {
				t.Fatal(err)
			}
			got, err := m.await(t.Context(), position, func(e Event) bool { return e.Name == "STOP" })
			if want := time.UnixMilli(1790000000250); err != nil || !got.At.Equal(want) || string(got.Data) != `{"n": 1}` {
				t.Errorf("event %+v, %v", got, err)
			}
		})
	}
}

func TestEndOfQEMUEndsWhatWaitsForIt(t *testing.T) {
	m := play(t) // it ends after its greeting
	if _, err := m.await(t.Context(), 0, func(Event) bool { return false }); err == nil {
		t.Error("an event of a QEMU that has ended")
	}
	if _, err := m.execute(t.Context(), "stop", nil); err == nil {
		t.Error("a QEMU that has ended obeys")
	}
}
