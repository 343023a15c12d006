package leader_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"flymesh/leader"
	"flymesh/leader/alert"
	"flymesh/leader/burn"
	"flymesh/leader/decide"
	"flymesh/leader/flyapi/flytest"
	"flymesh/probes/report"
	"flymesh/raftstore/state"
)

const ingest = "NightlyIngest"

// selfTold runs f on a stand whose leaders tell a receiver what the mesh says of
// itself.
func selfTold(t *testing.T, f func(s *stand, box *inbox), with ...func(*stand, *leader.Options)) {
	box := &inbox{name: "box"}
	bubble(t, flytest.DefaultTiming(), func(s *stand) { f(s, box) }, func(s *stand) {
		rules := append(alert.OfMesh(), alert.OfService("n8n")...)
		rules = append(rules, alert.OfRedis("n8n"), alert.OfJob(ingest, "n8n"))
		for _, w := range with {
			w(s, &leader.Options{}) // what it changes of the stand
		}
		s.tweak = func(o *leader.Options) {
			o.Alerting = leader.Alerting{Mesh: "m", Rules: rules, NoDataAfter: 5 * time.Minute, Receivers: []leader.Receiver{box}}
			o.Jobs = []leader.Job{{Name: ingest, Service: "n8n"}}
			for _, w := range with {
				w(s, o)
			}
		}
	})
}

// fires waits for the page and its text, and then, when f has mended things, for
// its end.
func (s *stand) fires(box *inbox, key, text string, within time.Duration, mend func()) {
	s.t.Helper()
	got := func() []string {
		all, _ := box.all()
		return slices.DeleteFunc(all, func(x string) bool { return !strings.HasPrefix(x, key+" ") })
	}
	s.await(key+" fires", within, func() bool { return s.raft.state().Alerts[key].Phase == state.Firing })
	if a := s.raft.state().Alerts[key]; !strings.Contains(a.Text, text) {
		s.t.Errorf("%s says %q, want %q in it", key, a.Text, text)
	}
	time.Sleep(5 * time.Second)
	mend()
	s.await(key+" is over", 70*time.Minute, func() bool { return s.raft.state().Alerts[key].Phase == state.Resolved })
	time.Sleep(5 * time.Second)
	if want := []string{key + " firing", key + " resolved"}; !slices.Equal(got(), want) {
		s.t.Errorf("told %q, want %q", got(), want)
	}
}

// say has a machine report, each interval, until the function that it returns is
// called.
func (s *stand) say(of func() report.Report) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done, born := make(chan struct{}), time.Now()
	go func() {
		defer close(done)
		for seq := uint64(1); ; seq++ {
			r := of()
			r.Boot, r.Seq = r.Machine+born.String(), seq
			for _, v := range s.voters {
				v.reports.Add(r)
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(every):
			}
		}
	}()
	return func() { cancel(); <-done }
}

func TestTellsOfTheCap(t *testing.T) {
	selfTold(t, func(s *stand, box *inbox) {
		s.lead("v0")
		s.offer(5)
		s.fires(box, "cap_reached/n8n", "but cpu > 80% for 3m holds", 30*time.Minute, func() { s.offer(0.3) })
	}, func(s *stand, _ *leader.Options) { s.policy.Services[0].Max = 2 })
}

func TestTellsOfAdditionsThatDoNotHelp(t *testing.T) {
	selfTold(t, func(s *stand, box *inbox) {
		s.lead("v0")
		s.offer(50)
		s.fires(box, "no_improvement/n8n", "", 40*time.Minute, func() { s.offer(0.3) })
	}, func(s *stand, _ *leader.Options) { s.policy.Services[0].Max = 9 })
}

func TestTellsOfTheBudget(t *testing.T) {
	selfTold(t, func(s *stand, box *inbox) {
		s.lead("v0")
		s.await("the alert", 3*time.Hour, func() bool { return s.raft.state().Alerts["budget_near/n8n"].Phase == state.Firing })
		if spent := s.raft.state().Service("n8n").Budget.Until(time.Now()).Spent; spent < 54*time.Minute || spent > 55*time.Minute {
			t.Errorf("told when %s of 1 h were used", spent)
		}
		time.Sleep(5 * time.Second)
		if got, _ := box.all(); !slices.Equal(got, []string{"budget_near/n8n firing"}) {
			t.Errorf("told %q", got)
		}
	}, func(s *stand, _ *leader.Options) { s.policy.Services[0].BudgetHours = 1 })
}

func TestTellsOfAFailedStep(t *testing.T) {
	selfTold(t, func(s *stand, box *inbox) {
		s.lead("v0")
		time.Sleep(time.Minute)
		s.fault(flytest.Fault{Action: "create", Status: 422, Body: noRoom})
		s.scale(2)
		s.fires(box, "operation_failed/n8n", "up failed", 10*time.Minute, func() { s.api.ClearFaults() })
		if n := len(s.started()); n != 2 {
			t.Errorf("%d machines: it is over without a step that went well\n%s", n, s.story())
		}
	})
}

func TestTellsOfAServiceThatIsNotHeard(t *testing.T) {
	selfTold(t, func(s *stand, box *inbox) {
		mute := func(on bool) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, a := range s.agents {
				a.mute = on
			}
		}
		s.lead("v0")
		time.Sleep(time.Minute)
		mute(true)
		s.fires(box, "no_data/n8n", "none of its 1 machines is heard", 5*time.Minute, func() { mute(false) })
	})
}

func TestTellsOfTheEdgeOfQuorum(t *testing.T) {
	var alive atomic.Int32
	alive.Store(3)
	selfTold(t, func(s *stand, box *inbox) {
		s.lead("v0")
		time.Sleep(5 * time.Minute)
		if a := s.raft.state().Alerts; len(a) != 0 {
			t.Errorf("alerts while all is well: %v", a)
		}
		alive.Store(2)
		s.fires(box, "quorum_edge", "2 of 3 voters are alive", 5*time.Minute, func() { alive.Store(3) })
	}, func(_ *stand, o *leader.Options) {
		o.Alerting.Voters = func() (int, int) { return 3, int(alive.Load()) }
	})
}

func TestTellsOfConfigsThatDiffer(t *testing.T) {
	selfTold(t, func(s *stand, box *inbox) {
		var config atomic.Value
		config.Store("bbbbbbbb")
		s.lead("v0")
		defer s.say(func() report.Report { return report.Report{Machine: "x1", Service: "n8n", Config: "aaaaaaaa"} })()
		defer s.say(func() report.Report {
			return report.Report{Machine: "x2", Service: "n8n", Config: config.Load().(string)}
		})()
		s.fires(box, "config_differs", "2 different mesh.toml: aaaaaaaa, bbbbbbbb", 20*time.Minute, func() { config.Store("aaaaaaaa") })
	})
}

func TestTellsOfARedisThatIsFull(t *testing.T) {
	selfTold(t, func(s *stand, box *inbox) {
		var full atomic.Bool
		full.Store(true)
		s.lead("v0")
		defer s.say(func() report.Report {
			return report.Report{Machine: "r1", Service: "n8n", Evicting: full.Load()}
		})()
		s.fires(box, "redis_full/n8n", "evicts keys or refuses writes on r1", 5*time.Minute, func() { full.Store(false) })
	})
}

// run has a person run the job, and its agent commit the start.
func (s *stand) run(id string) (token string) {
	s.t.Helper()
	l := s.voters[0].leader
	s.await("run "+id, 3*time.Minute, func() bool {
		_, _, r, err := l.RunJob(s.t.Context(), ingest, id, "ann", nil)
		token = r.Token
		return err == nil
	})
	a, err := l.Lock(s.t.Context(), leader.LockRequest{Verb: leader.JobBegin, ID: "b" + id, Lock: state.JobLock(ingest), Token: token})
	if err != nil || !a.OK {
		s.t.Fatalf("begin %s: %+v, %v", id, a, err)
	}
	return token
}

func (s *stand) ended(id, token string, failed bool) {
	s.t.Helper()
	a, err := s.voters[0].leader.Lock(s.t.Context(), leader.LockRequest{
		Verb: leader.JobFinish, ID: "e" + id, Lock: state.JobLock(ingest), Token: token, Failed: failed, Reason: "status 500",
	})
	if err != nil || !a.OK {
		s.t.Fatalf("end %s: %+v, %v", id, a, err)
	}
}

// TestTellsOfJobs: a run that fails, and one whose agent is never heard again.
func TestTellsOfJobs(t *testing.T) {
	const key = alert.JobRule + ingest + "/n8n"
	for _, c := range []struct {
		name, text string
		spoil      func(s *stand)
	}{
		{"failed", "is failed: status 500", func(s *stand) { s.ended("1", s.run("1"), true) }},
		{"lost", "is lost: ", func(s *stand) { s.run("1") }},
		{"missed", "is skipped: missed by more than 1h", func(s *stand) {
			s.raft.person(state.Command{Term: s.raft.state().Term, Skip: &state.Skip{Job: ingest, Tick: time.Now(), Reason: "missed by more than 1h: nobody led the mesh"}})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			selfTold(t, func(s *stand, box *inbox) {
				s.lead("v0")
				time.Sleep(time.Minute)
				s.ended("0", s.run("0"), false)
				c.spoil(s)
				s.fires(box, key, c.text, 5*time.Minute, func() { s.ended("2", s.run("2"), false) })
			})
		})
	}
}

// TestAPausedJobIsNoNews: what a person has paused is not missed.
func TestAPausedJobIsNoNews(t *testing.T) {
	bubble(t, flytest.DefaultTiming(), func(s *stand) {
		s.lead("v0")
		s.raft.person(state.Command{By: "ann", PauseJob: &state.PauseJob{Job: ingest, Until: time.Now().Add(5 * time.Hour), Reason: "holidays"}})
		s.await("a tick that is passed over", 2*time.Hour, func() bool { return s.happened("job_skipped") > 0 })
		time.Sleep(time.Minute)
		if a, ok := s.raft.state().Alerts[alert.JobRule+ingest+"/n8n"]; ok {
			t.Errorf("people are told: %+v", a)
		}
	}, func(s *stand) {
		s.tweak = func(o *leader.Options) {
			o.Alerting = leader.Alerting{Mesh: "m", Rules: []alert.Rule{alert.OfJob(ingest, "n8n")}}
			o.Jobs = []leader.Job{{Name: ingest, Service: "n8n", Cron: "30 * * * *", Misfire: time.Hour}}
		}
	})
}

// TestTheEndOfNoLeaderIsToldOnce: agents told people that nobody led, each in
// its own words; the leader that comes tells the end, once, also over changes
// of leaders, and again after the next time.
func TestTheEndOfNoLeaderIsToldOnce(t *testing.T) {
	selfTold(t, func(s *stand, box *inbox) {
		cry := func(n int) (stop func()) {
			var stops []func()
			at := time.Now().Truncate(time.Second)
			for i := range n {
				stops = append(stops, s.say(func() report.Report {
					return report.Report{Machine: fmt.Sprint("x", i), Service: "n8n", Cried: at.Add(time.Duration(i) * time.Second)}
				}))
			}
			return func() {
				for _, f := range stops {
					f()
				}
			}
		}
		want := []string{"no_leader resolved"}
		for range 2 {
			s.raft.elect("")
			time.Sleep(2 * time.Minute)
			stop := cry(3)
			time.Sleep(10 * time.Second)
			s.lead("v0")
			time.Sleep(15 * time.Second)
			s.lead("v1")
			time.Sleep(15 * time.Second)
			stop()
			time.Sleep(time.Minute)
			if got, _ := box.all(); !slices.Equal(got, want) {
				t.Fatalf("told %q, want %q", got, want)
			}
			want = append(want, want[0])
		}
	})
}

// TestBurnRateFiresAndOutlivesLeaders: what is burnt too fast is told once over
// three leaders, and a copy of a voter's past knows what that knows.
func TestBurnRateFiresAndOutlivesLeaders(t *testing.T) {
	goal := burn.Goal{Service: "n8n", Target: burn.Errors, Allowed: 0.01, Least: 20}
	box := &inbox{name: "box"}
	bubble(t, flytest.DefaultTiming(), func(s *stand) {
		var failed atomic.Int64
		defer s.say(func() report.Report {
			return report.Report{Machine: "x1", Service: "n8n", Requests: report.Of(600), Errors: report.Of(float64(failed.Load()))}
		})()
		s.lead("v0")
		time.Sleep(30 * time.Minute)
		failed.Store(120) // 20 times what is allowed, and 5 h of the 6 are not known
		began := time.Now()
		const key, sixHours = "error_rate_burn_3d/n8n", "error_rate_burn_6h/n8n"
		s.await(sixHours+" fires", 10*time.Hour, func() bool { return s.raft.state().Alerts[sixHours].Phase == state.Firing })
		if took := time.Since(began); took < 108*time.Minute || took > 110*time.Minute {
			t.Errorf("told after %s, want 1.8 h: only then 6 is sure, whatever was before", took)
		}
		b, err := s.voters[0].reports.ExportPast()
		if err != nil {
			t.Fatal(err)
		}
		blank := leader.NewReports(every, s.policy, goal)
		if err := blank.ImportPast(b); err != nil {
			t.Fatal(err)
		}
		for _, span := range []time.Duration{5 * time.Minute, 6 * time.Hour, 72 * time.Hour} {
			if got, want := blank.Burnt(time.Now(), goal, span), s.voters[0].reports.Burnt(time.Now(), goal, span); got != want || want.Covered == 0 {
				t.Errorf("over %s a copy knows %+v, the first %+v", span, got, want)
			}
		}
		for _, v := range []string{"v1", "v2"} {
			s.lead(v)
			time.Sleep(time.Minute)
		}
		failed.Store(0)
		s.await("its end", time.Hour, func() bool { return s.raft.state().Alerts[sixHours].Phase == state.Resolved })
		time.Sleep(5 * time.Second)
		got, _ := box.all()
		if want := []string{sixHours + " firing", sixHours + " resolved"}; !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
		if a := s.raft.state().Alerts[key]; a.Phase != state.NoData {
			t.Errorf("the rule of three days is %q after three hours, want no_data", a.Phase)
		}
	}, func(s *stand) {
		s.goals = []burn.Goal{goal}
		s.policy.Services[0].Mode = decide.Shadow
		s.tweak = func(o *leader.Options) {
			o.Alerting = leader.Alerting{Mesh: "m", Rules: alert.Burns(goal)[1:], NoDataAfter: 5 * time.Minute, Receivers: []leader.Receiver{box}}
		}
	})
}
