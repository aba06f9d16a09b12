"""One runner: the class `Runner`, one attempt at a scenario, and the process around it."""
