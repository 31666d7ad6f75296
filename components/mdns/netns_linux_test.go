package mdns_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/test/untested"
)

// lookEnv makes TestLookInNamespace the half of TestTwoHosts that looks, in a namespace.
const lookEnv = "MECHA_MDNS_TEST_LOOK"

// Two network namespaces joined by a cable are two hosts. The host's own network, with its
// default route, takes no part.
func TestTwoHosts(t *testing.T) {
	t.Parallel()
	a, b := twoHosts(t)
	far, wildcard, loopback := instance(1), instance(2), instance(3)
	wildcard.App, loopback.App = far.App, far.App
	far.Address, wildcard.Address, loopback.Address = "198.51.100.9:1001", "0.0.0.0:1002", "127.0.0.1:1003"
	for _, in := range []block.Instance{far, wildcard, loopback} {
		startChild(t, a, in)
	}
	for _, c := range []struct{ name, where, want string }{
		{"from the other host", b, "198.51.100.9:1001 198.51.100.1:1002"},
		{"from the same host", a, "198.51.100.9:1001 198.51.100.1:1002 127.0.0.1:1003"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text, err := json.Marshal(far.Name())
			if err != nil {
				t.Fatal(err)
			}
			look := exec.Command("ip", "netns", "exec", c.where, os.Args[0], "-test.run", "^TestLookInNamespace$", "-test.v")
			look.Env = append(os.Environ(), lookEnv+"="+string(text), "MECHA_MDNS_TEST_WANT="+c.want)
			if out, err := look.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestLookInNamespace") {
				t.Errorf("looking in %s: %v\n%s", c.where, err, out)
			}
		})
	}
}

// TestLookInNamespace does nothing unless TestTwoHosts starts it.
func TestLookInNamespace(t *testing.T) {
	text := os.Getenv(lookEnv)
	if text == "" {
		return
	}
	var name block.Name
	if err := json.Unmarshal([]byte(text), &name); err != nil {
		t.Fatal(err)
	}
	want := strings.Fields(os.Getenv("MECHA_MDNS_TEST_WANT"))
	r, got := open(t, nil), ""
	defer func() { t.Logf("heard %q", got) }()
	eventually(t, fmt.Sprintf("%q are heard", want), func() bool {
		got = addresses(t, r, name)
		if len(strings.Fields(got)) != len(want) {
			return false
		}
		for _, w := range want {
			if !strings.Contains(got, w) {
				return false
			}
		}
		return true
	})
}

// twoHosts makes two namespaces with a cable between them.
func twoHosts(t *testing.T) (a, b string) {
	t.Helper()
	suffix := fmt.Sprint(os.Getpid() % 100000)
	a, b = "mdnsa"+suffix, "mdnsb"+suffix
	t.Cleanup(func() {
		_ = exec.Command("ip", "netns", "del", a).Run() // takes the cable with it
		_ = exec.Command("ip", "netns", "del", b).Run()
	})
	for _, args := range []string{
		"netns add " + a, "netns add " + b,
		"link add va" + suffix + " netns " + a + " type veth peer name vb" + suffix + " netns " + b,
		"-n " + a + " addr add 198.51.100.1/24 dev va" + suffix, "-n " + b + " addr add 198.51.100.2/24 dev vb" + suffix,
		"-n " + a + " link set va" + suffix + " up", "-n " + b + " link set vb" + suffix + " up",
		"-n " + a + " link set lo up", "-n " + b + " link set lo up",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			untested.Skip(t, "multicast between hosts, which needs root and iproute2: ip %s: %v: %s", args, err, out)
		}
	}
	return a, b
}
