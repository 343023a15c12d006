package flytest

// Route is one app's way in.
type Route struct{}

func (r *Route) close() {}

// Routes tells each.
func (s *Server) Routes() []int { return nil }
