"""What a run will cost, told before it starts: rehearsed on this machine, estimated for named GPUs."""
