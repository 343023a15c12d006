package importtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// pure are the packages that only turn values into values.
var pure = []string{
	"leader/decide", "leader/window", "leader/alert", "leader/burn", "leader/history", "raftstore/state", "raftstore/epoch", "probes/report", "probes/gate",
}

// pureMayImport are the packages of the standard library and the small pure
// libraries that a PURE package may use; pure packages may use each other.
var pureMayImport = []string{
	"bytes", "cmp", "encoding/binary", "encoding/hex", "encoding/json", "errors", "fmt", "iter", "maps", "math",
	"math/bits", "slices", "sort", "strconv", "strings", "time", "unicode", "unicode/utf8",
	"github.com/DataDog/sketches-go/ddsketch",
	"github.com/DataDog/sketches-go/ddsketch/encoding",
	"github.com/DataDog/sketches-go/ddsketch/mapping",
	"github.com/DataDog/sketches-go/ddsketch/store",
}

// clock are the functions of package time that read a clock or wait.
var clock = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTicker", "NewTimer"}

// arrows says which parts may not import which: from prefix -> forbidden prefix.
var arrows = []struct{ from, not, why string }{
	{"leader", "agent", "the leader's ports are filled in by agent, not the other way round"},
	{"probes", "agent", "probes measure; agent wires"},
	{"raftstore", "agent", "agent wires raftstore"},
	{"raftstore", "leader", "the replicated state knows nothing of who leads it"},
	{"raftstore", "probes", "the replicated state knows nothing of measurements"},
	{"probes", "leader", "data flows from probes to the leader"},
	{"probes", "raftstore", "data flows from probes to the leader"},
	{"agent/config", "raftstore", "configuration is read before anything runs"},
}

// file is one parsed non-test Go file.
type file struct {
	pkg, name string
	ast       *ast.File
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test")
		}
		dir = filepath.Dir(dir)
	}
}

func files(t *testing.T) []file {
	t.Helper()
	top := root(t)
	var out []file
	err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && p != top || d.Name() == "testdata" || d.Name() == "bin" || d.Name() == "node_modules") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), p, nil, 0)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, p)
		if err != nil {
			return err
		}
		out = append(out, file{path.Dir(filepath.ToSlash(rel)), filepath.ToSlash(rel), f})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 20 {
		t.Fatalf("only %d Go files found: the walk is broken", len(out))
	}
	return out
}

func (f file) imports() []string {
	var out []string
	for _, i := range f.ast.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			p = i.Path.Value
		}
		out = append(out, p)
	}
	return out
}

func TestPurePackages(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range files(t) {
		if !slices.Contains(pure, f.pkg) {
			continue
		}
		seen[f.pkg] = true
		for _, bad := range impurities(f) {
			t.Errorf("%s: %s", f.name, bad)
		}
	}
	for _, p := range pure {
		if !seen[p] {
			t.Errorf("PURE package %s has no files: the list is out of date", p)
		}
	}
}

// impurities lists what a PURE file may not do.
func impurities(f file) []string {
	var out []string
	for _, imp := range f.imports() {
		own, ours := strings.CutPrefix(imp, "flymesh/")
		if ours && !slices.Contains(pure, own) || !ours && !slices.Contains(pureMayImport, imp) {
			out = append(out, fmt.Sprintf("imports %s, which is not a value package", imp))
		}
	}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			out = append(out, "starts a goroutine")
		case *ast.ChanType:
			out = append(out, "uses a channel")
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && x.Obj == nil && slices.Contains(clock, n.Sel.Name) {
				out = append(out, "calls time."+n.Sel.Name)
			}
		}
		return true
	})
	return out
}

func TestArrows(t *testing.T) {
	for _, f := range files(t) {
		for _, imp := range f.imports() {
			own, ours := strings.CutPrefix(imp, "flymesh/")
			if !ours {
				continue
			}
			for _, a := range arrows {
				if under(f.pkg, a.from) && under(own, a.not) {
					t.Errorf("%s imports %s: %s", f.name, imp, a.why)
				}
			}
			if own == "agent" && !under(f.pkg, "cmd") {
				t.Errorf("%s imports flymesh/agent: only cmd may", f.name)
			}
			if under(own, "cmd") && !under(f.pkg, "cmd") {
				t.Errorf("%s imports %s: nothing but cmd may import a command", f.name, imp)
			}
		}
	}
}

func under(pkg, dir string) bool { return pkg == dir || strings.HasPrefix(pkg, dir+"/") }

// TestTheTestSees breaks each rule in a made-up file: a check that cannot fail
// checks nothing.
func TestTheTestSees(t *testing.T) {
	src := `package decide
import ("os"; "time"; "flymesh/leader")
var c chan int
func f() { go f(); _ = time.Now(); _ = os.Args; leader.X() }`
	a, err := parser.ParseFile(token.NewFileSet(), "x.go", src, 0)
	if err != nil {
		t.Fatal(err)
	}
	got := impurities(file{"leader/decide", "x.go", a})
	want := []string{
		"imports os, which is not a value package",
		"imports flymesh/leader, which is not a value package",
		"uses a channel", "starts a goroutine", "calls time.Now",
	}
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("impurities = %q, lacks %q", got, w)
		}
	}
}
