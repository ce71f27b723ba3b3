"""The whole paper at pocket size: its tasks, its teacher, and the demo that runs it on a CPU in minutes."""
