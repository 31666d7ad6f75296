package embedded

import "context"

// CheckFormat reads FORMAT in path, for the fuzz target.
func CheckFormat(path string) (Durability, error) {
	f, err := dir(path).readFormat(opNode)
	if err != nil {
		return "", err
	}
	return f.durability, nil
}

// DialEnded is an attempt to reach the node of path by a connection that has ended.
func DialEnded(path string) error {
	l := &link{dir: dir(path)}
	l.life, l.stop = context.WithCancel(context.Background())
	l.stop()
	c, err := l.dial()
	if c != nil {
		_ = c.Close()
	}
	return err
}
