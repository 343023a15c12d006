// Package importtest has no code, only the test that keeps the parts apart:
// PURE packages import nothing that does I/O, reads a clock or starts a
// goroutine, and imports point one way (ARCHITECTURE.md, "Arrows").
package importtest
