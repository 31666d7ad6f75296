package outlier_test

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/runtime/policy/outlier"
)

func ptr[T any](v T) *T { return &v }

func TestValidate(t *testing.T) {
	tests := []struct {
		name string
		cfg  *outlier.Config
		want []string
	}{
		{"nil", nil, nil},
		{"nothing set", &outlier.Config{}, nil},
		{"everything set", &outlier.Config{
			Consecutive5xx: 5, ConsecutiveGateway: 3, ConsecutiveLocalOrigin: 2, SplitLocalOrigin: true,
			Interval: 10 * time.Millisecond, BaseEjection: time.Second, MaxEjection: time.Second, MaxEjectionJitter: time.Second,
			MaxEjectionPercent: 100, AlwaysEjectOne: ptr(false),
			SuccessRate:       &outlier.SuccessRate{StdevFactor: 1.9, MinHosts: 1, Volume: 1, Enforce: ptr(0)},
			FailurePercentage: &outlier.FailurePercentage{Threshold: 100, MinHosts: 1, Volume: 1, Enforce: ptr(100)},
		}, nil},
		{"base longer than the default maximum", &outlier.Config{BaseEjection: time.Hour}, nil},
		{"everything wrong", &outlier.Config{
			Consecutive5xx: -1, ConsecutiveGateway: -2, ConsecutiveLocalOrigin: -3,
			Interval: -time.Second, BaseEjection: -time.Second, MaxEjection: -time.Second, MaxEjectionJitter: -time.Second,
			MaxEjectionPercent: 101,
			SuccessRate:        &outlier.SuccessRate{StdevFactor: -1, MinHosts: -1, Volume: -1, Enforce: ptr(101)},
			FailurePercentage:  &outlier.FailurePercentage{Threshold: 850, MinHosts: -1, Volume: -1, Enforce: ptr(-1)},
		}, []string{
			"consecutive5xx: -1; want 0 (off) or more",
			"consecutiveGatewayFailure: -2; want 0 (off) or more",
			"consecutiveLocalOrigin: -3; want 0 (off) or more",
			"interval: -1s is negative; want a duration like 30s, or 0 for 10s",
			"baseEjection: -1s is negative; want a duration like 30s, or 0 for 30s",
			"maxEjection: -1s is negative; want a duration like 30s, or 0 for 300s",
			"maxEjectionJitter: -1s is negative; want a duration like 30s, or 0 for no jitter",
			"maxEjectionPercent: 101; want a percentage from 0 to 100",
			"successRate.stdevFactor: -1; want a number above 0, like 1.9, or 0 for that default",
			"successRate.minHosts: -1; want 0 (the default of 5) or more",
			"successRate.volume: -1; want 0 (the default) or more",
			"successRate.enforce: 101; want a percentage from 0 to 100",
			"failurePercentage.threshold: 850; want a percentage from 0 to 100",
			"failurePercentage.minHosts: -1; want 0 (the default of 5) or more",
			"failurePercentage.volume: -1; want 0 (the default) or more",
			"failurePercentage.enforce: -1; want a percentage from 0 to 100",
		}},
		{"no number", &outlier.Config{SuccessRate: &outlier.SuccessRate{StdevFactor: math.NaN()}}, []string{
			"successRate.stdevFactor: NaN; want a number above 0, like 1.9, or 0 for that default"}},
		{"no end", &outlier.Config{SuccessRate: &outlier.SuccessRate{StdevFactor: math.Inf(1)}}, []string{
			"successRate.stdevFactor: +Inf; want a number above 0, like 1.9, or 0 for that default"}},
		{"unit forgotten", &outlier.Config{Interval: 10}, []string{
			"interval: 10ns is too short; want 10ms or more, written with its unit, like 10s"}},
		{"maximum below the default base", &outlier.Config{MaxEjection: 10 * time.Second}, []string{
			"maxEjection: 10s is shorter than baseEjection; want 30s or more"}},
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
