package block

// StandsFor is offered by components that stand for another one, such as a store that encrypts what
// another keeps. They have the methods of every optional interface they can pass on; what they really
// offer is what the other one offers too.
type StandsFor interface{ Other() Component }

// As is c with an optional ability; ok tells whether it has that. It is how abilities are asked for:
// a type assertion would take a component that stands for another at its word.
func As[X any](c any) (x X, ok bool) {
	if x, ok = c.(X); !ok {
		return x, false
	}
	if s, stands := c.(StandsFor); stands {
		if _, ok = As[X](s.Other()); !ok {
			var none X
			return none, false
		}
	}
	return x, true
}
