package settings

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// booleans11 are the unquoted words YAML 1.1 reads as truth values. The parser follows
// YAML 1.2, existing resources were written against 1.1.
var booleans11 = map[string]bool{
	"y": true, "Y": true, "yes": true, "Yes": true, "YES": true, "on": true, "On": true, "ON": true,
	"true": true, "True": true, "TRUE": true,
	"n": false, "N": false, "no": false, "No": false, "NO": false, "off": false, "Off": false, "OFF": false,
	"false": false, "False": false, "FALSE": false,
}

// plain tells whether a scalar was written without quotes and without a tag of its own, so
// that its form decides its type.
func plain(n *yaml.Node) bool {
	return n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle|yaml.TaggedStyle) == 0
}

// boolOf reads a scalar as a truth value in the sense of YAML 1.1.
func boolOf(n *yaml.Node) (value, ok bool) {
	if n.Kind != yaml.ScalarNode {
		return false, false
	}
	if n.Tag == "!!bool" || plain(n) {
		value, ok = booleans11[n.Value]
	}
	return value, ok
}

// scalarText gives a scalar as the text a metadata value becomes: booleans are "true" or
// "false", numbers decimal, null empty, everything else what was written. ok is false for
// lists and mappings.
func scalarText(n *yaml.Node) (text string, ok bool) {
	if n.Kind != yaml.ScalarNode {
		return "", false
	}
	if b, isBool := boolOf(n); isBool {
		return strconv.FormatBool(b), true
	}
	switch n.Tag {
	case "!!null":
		return "", true
	case "!!int", "!!float":
		if s, isNumber := numberText(n); isNumber {
			return s, true
		}
	case "!!binary":
		var s string
		if n.Decode(&s) == nil {
			return s, true
		}
	}
	return n.Value, true
}

// numberText writes a number in decimal. A whole number too big for 64 bits keeps its
// digits: rounding an account number helps nobody.
func numberText(n *yaml.Node) (string, bool) {
	var v any
	if n.Decode(&v) != nil {
		return "", false
	}
	switch x := v.(type) {
	case int, int64, uint64:
		return fmt.Sprint(x), true
	case float64:
		if strings.Trim(n.Value, "+-0123456789_") == "" || math.IsInf(x, 0) || math.IsNaN(x) {
			return n.Value, true
		}
		b, err := json.Marshal(x)
		return string(b), err == nil
	}
	return "", false
}

// anyOf gives a node as plain Go values: string, bool, int64, uint64, float64, nil, []any and
// map[string]any. Keys become text.
func anyOf(n *yaml.Node) any {
	switch n.Kind {
	case yaml.MappingNode:
		m := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			m[textOf(n.Content[i])] = anyOf(n.Content[i+1])
		}
		return m
	case yaml.SequenceNode:
		list := make([]any, 0, len(n.Content))
		for _, c := range n.Content {
			list = append(list, anyOf(c))
		}
		return list
	}
	if b, ok := boolOf(n); ok {
		return b
	}
	switch n.Tag {
	case "!!null":
		return nil
	case "!!int", "!!float":
		var v any
		if n.Decode(&v) != nil {
			return n.Value
		}
		if i, ok := v.(int); ok {
			return int64(i)
		}
		if f, ok := v.(float64); ok && (math.IsInf(f, 0) || math.IsNaN(f)) {
			return n.Value
		}
		return v
	}
	text, _ := scalarText(n)
	return text
}

// valueText gives any node as the text of a metadata value: scalars as scalarText, lists
// and mappings as JSON.
func valueText(n *yaml.Node) string {
	if s, ok := scalarText(n); ok {
		return s
	}
	b, err := json.Marshal(anyOf(n))
	if err != nil { // anyOf yields only what JSON can hold
		return ""
	}
	return string(b)
}
