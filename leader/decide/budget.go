package decide

import (
	"fmt"
	"strings"
)

// Budgets are limits outside the rules: whatever the rules say, a day costs at
// most so much more, and a service turns back at most so often in an hour.
// Near a budget the rules must hold longer; at its end they are held.
const (
	nearBudget = 0.8 // share of a budget from which on it is near
	tight      = 2   // times a rule's duration that it must hold near a budget
)

// hoursSpent and hoursNear are about the machine-hours of the day. They bind
// additions alone: what runs goes on, and a removal saves money.
func (r *round) hoursSpent() bool {
	return r.service.BudgetHours > 0 && !(r.facts.Hours < r.service.BudgetHours)
}

func (r *round) hoursNear() bool {
	return r.service.BudgetHours > 0 && !(r.facts.Hours < nearBudget*r.service.BudgetHours)
}

// turnsAfter is how many reversals there may be in the hour if a machine is
// removed now: the removal is one if an addition came before it, and taking it
// back is another. So it is removals that the flap budget holds, never an
// addition that users wait for, and still no hour has more reversals than it
// allows.
func (r *round) turnsAfter() float64 {
	if r.facts.Turned != Up {
		return 0
	}
	return float64(r.facts.Turns) + 2
}

func (r *round) turnsSpent() bool {
	return r.service.FlapPerHour > 0 && r.turnsAfter() > float64(r.service.FlapPerHour)
}

func (r *round) turnsNear() bool {
	return r.service.FlapPerHour > 0 && r.turnsAfter() > nearBudget*float64(r.service.FlapPerHour)
}

// tightened returns the rules as they are near a budget.
func tightened(rules []Rule, near bool) []Rule {
	if !near {
		return rules
	}
	out := make([]Rule, len(rules))
	for i, r := range rules {
		if r.For > 0 && r.For <= MaxFor {
			r.For *= tight
		}
		out[i] = r
	}
	return out
}

// budget is the guard of both budgets. The baseline is exempt, because an
// outage is no saving; a person is only warned.
func (r *round) budget() (blocks bool, detail string) {
	var parts []string
	if limit := r.service.BudgetHours; limit > 0 {
		text := fmt.Sprintf("%s of %s machine-hours of this day (UTC)", number(r.facts.Hours), number(limit))
		switch {
		case !r.hoursSpent() && r.hoursNear():
			text += ", so an up rule must hold twice as long"
		case !r.hoursSpent():
		case r.want.code == CodeManual:
			text += " are spent; a person asked, so this is only a warning"
		case r.want.code == CodeBelowBaseline:
			text += " are spent; the baseline is not held back"
		default:
			text += " are spent"
			blocks = r.want.kind == Up
		}
		parts = append(parts, text)
	}
	if limit := r.service.FlapPerHour; limit > 0 {
		text := fmt.Sprintf("%d of %d reversals in the last hour", r.facts.Turns, limit)
		switch {
		case r.turnsSpent() && r.want.code == CodeRuleDown:
			text += ", too many to remove a machine and perhaps take it back"
			if !r.facts.TurnsUntil.IsZero() {
				text += "; one less at " + clock(r.facts.TurnsUntil)
			}
			blocks = true
		case r.turnsNear():
			text += ", so a down rule must hold twice as long"
		}
		parts = append(parts, text)
	}
	if len(parts) == 0 {
		return false, "no budget is set"
	}
	return blocks, strings.Join(parts, "; ")
}
