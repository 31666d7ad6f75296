package health_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/runtime/policy/health"
)

func TestValidate(t *testing.T) {
	tests := []struct {
		name string
		cfg  *health.Config
		want []string
	}{
		{"nil", nil, nil},
		{"nothing set", &health.Config{}, nil},
		{"everything set", &health.Config{Interval: time.Second, Timeout: time.Second, HealthyThreshold: 1, UnhealthyThreshold: 1,
			Jitter: 100, IdleInterval: time.Second, Path: "/healthz"}, nil},
		{"interval shorter than the default timeout", &health.Config{Interval: 100 * time.Millisecond}, nil},
		{"interval longer than the default idle interval", &health.Config{Interval: time.Hour}, nil},
		{"everything negative", &health.Config{Interval: -1, Timeout: -1, HealthyThreshold: -1, UnhealthyThreshold: -1, Jitter: -1, IdleInterval: -1},
			[]string{
				"interval: -1ns is negative; want a duration, or 0 for 10s",
				"timeout: -1ns is negative; want a duration, or 0 for 1s",
				"idleInterval: -1ns is negative; want a duration, or 0 for 60s",
				"healthyThreshold: -1; want 1 or more, or 0 for 2",
				"unhealthyThreshold: -1; want 1 or more, or 0 for 3",
				"jitterPercent: -1; want a percentage from 1 to 100, or 0 for 10",
			}},
		{"units forgotten", &health.Config{Interval: 10, Timeout: 1, IdleInterval: 60}, []string{
			"interval: 10ns is too short; want 10ms or more, written with its unit, like 10s",
			"timeout: 1ns is too short; want 10ms or more, written with its unit, like 1s",
			"idleInterval: 60ns is too short; want 10ms or more, written with its unit, like 60s",
		}},
		{"out of proportion", &health.Config{Timeout: 11 * time.Second, IdleInterval: 9 * time.Second, Jitter: 101}, []string{
			"timeout: 11s is longer than interval; want 10s or less",
			"idleInterval: 9s is shorter than interval; want 10s or more",
			"jitterPercent: 101; want a percentage from 1 to 100, or 0 for 10",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			if err := tt.cfg.Validate(); err != nil {
				got = strings.Split(err.Error(), "\n")
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("findings (-want +got):\n%s", d)
			}
		})
	}
}
