package jsontree

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Diff returns the JSON patch (RFC 6902) that turns before into after; nil when they are equal. It touches
// only what differs, members by name and then elements by position.
func Diff(before, after Object) []byte {
	var p patch
	p.objects("", before, after)
	if p.text == nil {
		return nil
	}
	return append(p.text, ']')
}

type patch struct{ text []byte }

// operation writes one operation; a removal has no value.
func (p *patch) operation(op, path string, value ...any) {
	separator := ","
	if p.text == nil {
		p.text, separator = make([]byte, 0, 4<<10), "["
	}
	p.text = append(append(append(p.text, separator...), `{"op":"`...), op...)
	p.encode(`","path":`, path)
	for _, value := range value {
		p.encode(`,"value":`, value)
	}
	p.text = append(p.text, '}')
}

func (p *patch) encode(key string, value any) {
	text, isText := value.(Value) // encoding/json would check it once more
	if !isText {
		var err error
		if text, err = json.Marshal(value); err != nil {
			panic(err) // no Object
		}
	}
	p.text = append(append(p.text, key...), text...)
}

var escapeToken = strings.NewReplacer("~", "~0", "/", "~1")

func (p *patch) values(path string, before, after any) {
	afterObject, isObject := after.(Object)
	if text, isText := before.(Value); isText && isObject && Name(text) == Name(afterObject) {
		before = text.Tree() // as Named did in after
	}
	switch beforeIs := before.(type) {
	case Object:
		if isObject {
			p.objects(path, beforeIs, afterObject)
			return
		}
	case []any:
		if afterIs, same := after.([]any); same {
			p.lists(path, beforeIs, afterIs)
			return
		}
	}
	if !reflect.DeepEqual(before, after) {
		p.operation("replace", path, after)
	}
}

func (p *patch) objects(path string, before, after Object) {
	keys := slices.AppendSeq(make([]string, 0, len(before)+len(after)), maps.Keys(before))
	keys = slices.AppendSeq(keys, maps.Keys(after))
	slices.Sort(keys)
	for _, key := range slices.Compact(keys) {
		old, was := before[key]
		value, is := after[key]
		at := path + "/" + escapeToken.Replace(key)
		switch {
		case !was:
			p.operation("add", at, value)
		case !is:
			p.operation("remove", at)
		default:
			p.values(at, old, value)
		}
	}
}

func (p *patch) lists(path string, before, after []any) {
	// What both lists end with stays, whatever is inserted or removed in front of it.
	end := 0
	if len(before) != len(after) {
		for end < min(len(before), len(after)) && reflect.DeepEqual(before[len(before)-1-end], after[len(after)-1-end]) {
			end++
		}
	}
	shared := min(len(before), len(after)) - end
	for i := range shared {
		p.values(path+"/"+strconv.Itoa(i), before[i], after[i])
	}
	for i := len(before) - end - 1; i >= shared; i-- {
		p.operation("remove", path+"/"+strconv.Itoa(i))
	}
	for i := shared; i < len(after)-end; i++ {
		token := "-"
		if end > 0 {
			token = strconv.Itoa(i)
		}
		p.operation("add", path+"/"+token, after[i])
	}
}
