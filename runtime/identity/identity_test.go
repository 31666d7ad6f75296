package identity_test

import (
	"testing"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/identity"
)

func TestParseApp(t *testing.T) {
	tests := []struct{ in, app, ns string }{
		{"orders", "orders", "here"},
		{"orders.shop", "orders", "shop"},
		{"orders.", "orders", ""},
		{"Orders", "Orders", "here"},
	}
	for _, tt := range tests {
		app, ns, err := identity.ParseApp(tt.in, "here")
		if err != nil || app != tt.app || ns != tt.ns {
			t.Errorf("ParseApp(%q) = %q, %q, %v; want %q, %q", tt.in, app, ns, err, tt.app, tt.ns)
		}
	}
	for _, bad := range []struct {
		in     string
		reason fault.Reason
		text   string
	}{{"a.b.c", "", "invalid app id a.b.c"}, {"a..", "", "invalid app id a.."}, {"", fault.NoTarget, "app id is empty"}, {".shop", fault.NoTarget, "app id is empty"}} {
		_, _, err := identity.ParseApp(bad.in, "here")
		if fault.Of(err) != fault.Invalid || fault.ReasonOf(err) != bad.reason || err.Error() != bad.text {
			t.Errorf("ParseApp(%q): %v (%v, %q), want %q", bad.in, err, fault.Of(err), fault.ReasonOf(err), bad.text)
		}
	}
}
