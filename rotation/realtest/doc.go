// Package realtest tries rotation with real servers: what packages below prove of their
// part is proven here of the whole. It has tests only.
package realtest
