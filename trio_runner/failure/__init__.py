"""One promise: every death of an attempt is recorded, published once, and under one id."""
