package providerstest

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
)

// collector is a TB whose failures are the expected thing: it takes what a case of a
// suite finds, and passes nothing on.
type collector struct {
	testing.TB
	mu       sync.Mutex
	found    []string
	cleanups []func()
}

func (c *collector) add(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.found = append(c.found, text)
}

func (c *collector) Helper()                      {}
func (c *collector) Error(args ...any)            { c.add(fmt.Sprint(args...)) }
func (c *collector) Errorf(f string, args ...any) { c.add(fmt.Sprintf(f, args...)) }
func (c *collector) Fail()                        { c.add("failed") }
func (c *collector) FailNow()                     { c.Fail(); runtime.Goexit() }
func (c *collector) Fatal(args ...any)            { c.Error(args...); runtime.Goexit() }
func (c *collector) Fatalf(f string, args ...any) { c.Errorf(f, args...); runtime.Goexit() }
func (c *collector) Failed() bool                 { c.mu.Lock(); defer c.mu.Unlock(); return len(c.found) > 0 }
func (c *collector) Log(...any)                   {}
func (c *collector) Logf(string, ...any)          {}
func (c *collector) Cleanup(f func())             { c.cleanups = append(c.cleanups, f) }

// collect runs one case and returns what it found.
func collect(t *testing.T, run func(testing.TB)) []string {
	c := &collector{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			for i := len(c.cleanups) - 1; i >= 0; i-- {
				c.cleanups[i]()
			}
		}()
		run(c)
	}()
	<-done
	return c.found
}

// wantFound runs the cases until one of them finds something, and fails if none does.
func wantFound(t *testing.T, cases []testCase) {
	t.Helper()
	for _, c := range cases {
		if found := collect(t, c.run); len(found) > 0 {
			t.Logf("%s: %s", c.name, found[0])
			return
		}
	}
	t.Errorf("the suite of %d cases passes", len(cases))
}
