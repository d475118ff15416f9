"""The packed model: trace, compile, save, load, run; binding to the native engine."""
