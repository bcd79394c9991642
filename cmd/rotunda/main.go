// Command rotunda is the server (`rotunda serve`) and the client of its API.
//
// # Model
//
// Every client command is one or more calls of the Connect API in
// proto/rotunda/v1; the client holds no rule of its own about keys, so what it
// prints is what the server said. The exceptions are rules about this machine:
// file modes of the data directory, and where a token may travel.
//
// # Invariants
//
//   - Results go to stdout, everything else to stderr. A secret is printed only
//     by `create` and `roll` of tokens, keys and request secrets and by `sign`,
//     once, on stdout. With -o json the result is
//     the API's own JSON, with -o yaml the same content.
//   - The exit code is 0 when done, 1 when refused or denied, 2 on wrong usage,
//     3 when the server can't be reached, 4 when nothing is wrong but what was
//     asked can't be proved.
//   - A token is not sent in plain text to another machine unless --insecure says
//     so, and the connection checks the address that a name resolved to.
//   - Only flags that were given reach a request: an unset duration means the
//     default, an explicit 0 means zero.
//   - What others wrote (names, reasons, notes) can't move the cursor of a
//     terminal: characters that don't print are shown escaped.
//
// # What happens on failure
//
// One line says what was attempted and what to do; a second gives the reason
// word, the field and the request id for programs and for the server's log.
// Creates carry an Idempotency-Key, so that one that is sent twice makes one thing.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// version is set by the linker (Makefile).
var version = ""

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal ends the work in good order, the second one at once.
	context.AfterFunc(ctx, stop)
	p := process{
		program: os.Args[0],
		env:     os.Getenv, now: time.Now,
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		typed: term.IsTerminal(int(os.Stdin.Fd())),
	}
	p.person = p.typed && term.IsTerminal(int(os.Stderr.Fd()))
	if fd := int(os.Stdout.Fd()); term.IsTerminal(fd) {
		p.width, _, _ = term.GetSize(fd)
		p.colour = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	}
	if fd := int(os.Stderr.Fd()); term.IsTerminal(fd) {
		p.barWidth, _, _ = term.GetSize(fd)
	}
	os.Exit(run(ctx, os.Args[1:], p))
}

// process is what a run has from its surroundings.
type process struct {
	program        string // how the program was called, for the commands that it suggests; "" means "rotunda"
	env            func(string) string
	now            func() time.Time
	stdin          io.Reader
	stdout, stderr io.Writer
	typed          bool // stdin is a terminal
	person         bool // somebody at a terminal can answer a question
	width          int  // columns of the terminal on stdout; 0: it is not one
	barWidth       int  // columns of the terminal on stderr; 0: it is not one
	colour         bool
}

// run executes one command line, without the program's name, and returns the
// exit code.
func run(ctx context.Context, args []string, p process) int {
	p.program = quote(firstOf(p.program, "rotunda"))
	c := &cli{process: p}
	root := newRoot(c) //nolint:contextcheck // cobra hands ctx to the commands
	root.SetArgs(kidsLast(args))
	root.SetIn(p.stdin)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	return c.report(ctx, cmd, err)
}

// cli is one run of the program.
type cli struct {
	process
	conf    connection
	output  choice
	started bool // flags and arguments were in order; what fails later is no wrong usage
}

func newRoot(c *cli) *cobra.Command {
	root := &cobra.Command{
		Use:   "rotunda COMMAND",
		Short: "Keys that change on schedule, with overlap",
		Long: `Rotunda keeps signing keys: it rotates them on schedule, publishes each key before it
signs, and withdraws it only when no token of it is alive. For partners it keeps API keys and
request-signing secrets, and tells gateways which are accepted. It rotates credentials: values that a
target accepts (a database, a cloud account) and that consumers read in stores (Vault, AWS, Rotunda).

Exit codes: 0 done, 1 refused or denied, 2 wrong usage, 3 the server can't be reached,
4 nothing is wrong, but what was asked can't be proved (audit verify, audit evidence).`,
		Example: `  rotunda serve --data-dir ./data
  rotunda keyset create payments --issuer https://auth.example.com --rotate-every 720h --token-ttl 1h --profile envoy
  rotunda sign payments --claims '{"sub":"order-7","aud":"ledger"}' --ttl 10m
  rotunda partner create acme --scope orders:read
  rotunda key create --partner acme --name ci --scope orders:read --expires-in 90d
  rotunda credential create -f orders-db.yaml
  rotunda credential rotate orders-db --watch`,
		Version:               buildVersion(),
		SilenceErrors:         true,
		SilenceUsage:          true,
		DisableFlagsInUseLine: true,
		RunE:                  needsCommand,
		PersistentPreRun:      func(*cobra.Command, []string) { c.started = true },
	}
	if c.program != "" {
		root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: c.program}
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(
		newServe(c),
		newKeyset(c),
		newSign(c),
		newPartner(c),
		newKey(c),
		newSecret(c),
		newCredential(c),
		newRotation(c),
		newStore(c),
		newTarget(c),
		newEndpoint(c),
		newIncident(c),
		newForecast(c),
		newRead(c),
		newPepper(c),
		newToken(c),
		newAudit(c),
		newDrill(c),
		newSchema(c),
		newDoctor(c),
		newVersion(c),
	)
	c.callAsCalled(root)
	return root
}

// command matches where the example of a help text calls the program.
var command = regexp.MustCompile(`(^|[\s(])rotunda( [a-z])`)

// callAsCalled makes the examples of cmd, and of all below it, call the program
// as it was called.
func (c *cli) callAsCalled(cmd *cobra.Command) {
	if c.program == "" {
		return
	}
	cmd.Example = command.ReplaceAllStringFunc(cmd.Example, func(s string) string {
		return strings.Replace(s, "rotunda", c.program, 1)
	})
	for _, below := range cmd.Commands() {
		c.callAsCalled(below)
	}
}

// newGroup returns a command that only holds others.
func newGroup(name, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use:                   name + " COMMAND",
		Short:                 short,
		DisableFlagsInUseLine: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				return usagef("unknown command %q: did you mean %q?", args[0], near[0])
			}
			return usagef("unknown command %q", args[0])
		},
		RunE: needsCommand,
	}
	cmd.SuggestionsMinimumDistance = 2
	cmd.AddCommand(commands...)
	return cmd
}

func needsCommand(cmd *cobra.Command, _ []string) error {
	return usagef("%s needs a command", cmd.CommandPath())
}

func newVersion(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this program",
		Example: "  rotunda version",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			p := c.newPage()
			p.line("rotunda %s", buildVersion())
			return p.flush()
		},
	}
}

func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "devel"
}
