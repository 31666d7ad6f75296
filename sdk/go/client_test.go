package mecha

import (
	"testing"
)

func TestAddress(t *testing.T) {
	for _, tt := range []struct {
		address, target string
		secure, bad     bool
	}{
		{"127.0.0.1:50001", "127.0.0.1:50001", false, false},
		{"unix:///run/mecha.sock", "unix:///run/mecha.sock", false, false},
		{"dns:///mecha:50001?tls=true", "dns:///mecha:50001", true, false},
		{"mecha:50001?tls=false", "mecha:50001", false, false},
		{"http://mecha:3500", "mecha:3500", false, false},
		{"https://mecha", "mecha:443", true, false},
		{"https://mecha:8443/", "mecha:8443", true, false},
		{"https://[::1]", "[::1]:443", true, false},
		{"", "", false, true},
		{"mecha:1?tls=perhaps", "", false, true},
		{"?tls=true", "", false, true},
	} {
		target, secure, err := parseAddress(tt.address)
		if target != tt.target || secure != tt.secure || (err != nil) != tt.bad {
			t.Errorf("%q: got %q, %t, %v", tt.address, target, secure, err)
		}
	}
}

func TestAddressOfTheEnvironment(t *testing.T) {
	for _, tt := range []struct {
		env  map[string]string
		want string
	}{
		{nil, "127.0.0.1:50001"},
		{map[string]string{"DAPR_GRPC_PORT": "5"}, "127.0.0.1:5"},
		{map[string]string{"DAPR_GRPC_PORT": "5", "MECHA_GRPC_PORT": "6"}, "127.0.0.1:6"},
		{map[string]string{"DAPR_GRPC_ENDPOINT": "a:1", "MECHA_GRPC_PORT": "6"}, "a:1"},
		{map[string]string{"DAPR_GRPC_ENDPOINT": "a:1", "MECHA_GRPC_ENDPOINT": "b:2"}, "b:2"},
	} {
		if got := addressOf(func(k string) string { return tt.env[k] }); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.env, got, tt.want)
		}
	}
}

func TestRanges(t *testing.T) {
	got := ranges([]uint64{9, 2, 3, 1, 7, 7, 5})
	want := [][2]uint64{{1, 3}, {5, 5}, {7, 7}, {9, 9}}
	if len(got) != len(want) {
		t.Fatalf("got %v", got)
	}
	for i, r := range got {
		if r.From != want[i][0] || r.To != want[i][1] {
			t.Errorf("range %d: %v, want %v", i, r, want[i])
		}
	}
}
