// The pod sandbox's own process: the standard library only, so there is no go.sum.
module hawkeye.bytebot.ai/e2e/tools/pause

go 1.26.0
