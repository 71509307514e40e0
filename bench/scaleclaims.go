package main

import "fmt"

// claim turns figures into claims.
func (s *scaleRun) claim(sizes map[int]size, loaded bool) {
	at := func(key string, value float64, detail string) {
		s.samples[key] = sample{values: []float64{value}, detail: detail, loaded: loaded}
	}
	how := fmt.Sprintf("the lab's cloud: %s a call, during which the VPC takes no other change, entries Pending for %s", cloudLatency, cloudDelay)
	for key, one := range sizes {
		c, n := one.controller, one.controller.nodes
		at(fmt.Sprintf("scale.calls.%d", key), float64(c.all())/float64(c.least()), fmt.Sprintf("%d calls, refused ones included: %v; least %d: %d of %d entries, a look at the tables, two calls for an empty table before, pages of %d after; then, in %s, %v (rights that nothing has used yet are asked about). %s",
			c.all(), c.calls, c.least(), (n+maxBatch-1)/maxBatch, maxBatch, listPage, idleTime, c.after, how))
	}
	l, m := sizes[largeNodes], sizes[smallNodes]
	at("scale.restart.cloud", float64(l.restart.cloudWrites), fmt.Sprintf("and %d calls that read: %v", l.restart.cloudReads, l.restart.calls))
	at("scale.restart.api", sumOf(l.restart.writes), fmt.Sprintf("all but the Lease of the leader; %v", l.restart.writes))
	peak := max(l.controller.memory.Most, l.restart.memory.Most)
	at("scale.rss.controller", peak, fmt.Sprintf("VmHWM, the most that it ever had, the first publishing and a restart; afterwards %.1f and %.1f; with %d nodes %.1f, afterwards %.1f; %.1f of it are pages of the program's file",
		l.controller.memory.Now, l.restart.memory.Now, s.small, m.controller.memory.Most, m.controller.memory.Now, l.controller.memory.File))
	at("scale.rss.agent", l.agent.memory.Most, fmt.Sprintf("VmHWM, the most that it ever had, its start included; afterwards %.1f; with %d peers %.1f, afterwards %.1f; %.1f of it are pages of the program's file",
		l.agent.memory.Now, s.small-1, m.agent.memory.Most, m.agent.memory.Now, l.agent.memory.File))
	s.claimGrowth(l, m, at)
}

// claimGrowth holds what is measured at both sizes against linear growth.
func (s *scaleRun) claimGrowth(l, m size, at func(key string, value float64, detail string)) {
	grow := func(key string, large, small float64, format string) {
		at("scale.growth."+key, large/small, fmt.Sprintf(format+"; with the constant part, which makes it less than it would be without", large, small))
	}
	lc, mc, la, ma := l.controller, m.controller, l.agent, m.agent
	grow("routes", lc.available.Seconds(), mc.available.Seconds(), "from the controller's start until all routes are Available: %.1f s, %.1f s")
	s.noteMore("scale.growth.routes", fmt.Sprintf("the condition says so after %.1f s, %.1f s; all nodes are marked after %.1f s, %.1f s; API writes %v, %v",
		lc.told.Seconds(), mc.told.Seconds(), lc.marked.Seconds(), mc.marked.Seconds(), lc.writes, mc.writes))
	grow("controller", lc.memory.Most, mc.memory.Most, "the controller's VmHWM: %.1f MiB, %.1f MiB")
	grow("converge", la.converged.Seconds(), ma.converged.Seconds(), "from the agent's start until its kernel has all routes: %.2f s, %.2f s")
	grow("agent", la.memory.Most, ma.memory.Most, "an agent's VmHWM: %.1f MiB, %.1f MiB")
	grow("bytes", float64(la.first)/mib, float64(ma.first)/mib, "what an agent reads until it has all routes (TLS, compressed): %.1f MiB, %.1f MiB")
	s.noteMore("scale.growth.bytes", fmt.Sprintf("each report of a kubelet's status costs every agent %.0f bytes: with %d nodes, one each 5 minutes, %.0f KiB/s", la.heartbeat, s.large, la.heartbeat*float64(s.large)/300/1024))
	at("scale.growth.pods", la.pod/ma.pod, fmt.Sprintf("what an agent reads for the life of a pod of its own node and that of one of another (made, running, deleted; TLS, compressed): %.0f bytes, %.0f bytes", la.pod, ma.pod))
	grow("kernel", float64(total(la.objects)), float64(total(ma.objects)), "routes, neighbours, forwarding entries, elements of sets, links: %.0f, %.0f")
	s.noteMore("scale.growth.kernel", fmt.Sprint(la.objects))
	grow("probes", la.wholeCluster(), ma.wholeCluster(), "probe messages that the whole cluster sends, by what one proven node costs its provers: %.0f/s, %.0f/s")
	s.noteMore("scale.growth.probes", fmt.Sprintf("the agent sends %.2f/s for the %.0f nodes that it was chosen for, %.2f/s for %.0f; those are played here and do not answer: the fastest pace", la.probes, la.proves, ma.probes, ma.proves))
}

// noteMore adds to a sample's detail.
func (s *scaleRun) noteMore(key, text string) {
	one := s.samples[key]
	one.detail += "; " + text
	s.samples[key] = one
}

func total(counts map[string]int) (sum int) {
	for _, n := range counts {
		sum += n
	}
	return sum
}

func sumOf(counts map[string]float64) (sum float64) {
	for _, n := range counts {
		sum += n
	}
	return sum
}
