package embedded

// CheckFormat reads FORMAT in path, for the fuzz target.
func CheckFormat(path string) (Durability, error) {
	f, err := dir(path).readFormat(opNode)
	if err != nil {
		return "", err
	}
	return f.durability, nil
}
