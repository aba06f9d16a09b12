"""The command line: `main` parses and decides the exit code; each verb's module is imported when the verb is called."""
