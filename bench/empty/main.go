// Command empty does nothing: what it costs to run is the floor under every
// plugin that a container runtime executes.
package main

func main() {}
