package dns

import (
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"

	"github.com/mecha-project/mecha/components/block"
)

// question is what a template became: addresses of host when port is set, else its SRV
// records.
type question struct{ host, port string }

func (q question) String() string {
	if q.port == "" {
		return q.host
	}
	return net.JoinHostPort(q.host, q.port)
}

var (
	variable = regexp.MustCompile(`\{\{-?\s*(.*?)\s*-?\}\}`)
	// A name that goes into a host name must stay within its labels' alphabet: an app id
	// must not be able to add a port or leave the zone.
	hostPart = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*$`)
)

// expand makes the question for an app.
func (c *Config) expand(name block.Name) (question, error) {
	var bad error
	text := variable.ReplaceAllStringFunc(c.Template, func(m string) string {
		switch v := variable.FindStringSubmatch(m)[1]; v {
		case ".ID":
			return part("app id", name.App, &bad)
		case ".Namespace":
			return part("namespace", name.Namespace, &bad)
		case ".ClusterDomain":
			return part("clusterDomain", c.ClusterDomain, &bad)
		case ".Port":
			return strconv.Itoa(c.Port)
		default:
			if bad == nil {
				bad = fmt.Errorf("%s is not offered; use {{.ID}}, {{.Namespace}}, {{.ClusterDomain}} or {{.Port}}", m)
			}
			return ""
		}
	})
	if bad != nil {
		return question{}, bad
	}
	q := question{host: text}
	if strings.Contains(text, ":") {
		host, port, err := net.SplitHostPort(text)
		if err != nil {
			return question{}, fmt.Errorf("it gives %q, which is not host:port", text)
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return question{}, fmt.Errorf("it gives %q, whose port is not a number from 1 to 65535", text)
		}
		q = question{host, port}
	}
	q.host = strings.TrimSuffix(q.host, ".")
	isIP := net.ParseIP(q.host) != nil
	if isIP && q.port == "" {
		return question{}, fmt.Errorf("it gives the address %q without a port", q.host)
	}
	if !isIP && (len(q.host) > 253 || !hostPart.MatchString(q.host) || longLabel(q.host)) {
		return question{}, fmt.Errorf("it gives %q, which is not a host name", q.host)
	}
	return q, nil
}

func part(what, text string, bad *error) string {
	if !hostPart.MatchString(text) && *bad == nil {
		*bad = fmt.Errorf("%s %q cannot be part of a host name", what, text)
	}
	return text
}

func longLabel(host string) bool {
	for label := range strings.SplitSeq(host, ".") {
		if len(label) > 63 {
			return true
		}
	}
	return false
}
