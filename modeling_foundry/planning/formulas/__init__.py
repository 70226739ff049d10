"""The arithmetic: parameters, FLOPs, memory, time, money, scaling."""
