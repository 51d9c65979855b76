"""The parts that a person sees: command line, report, design page, callbacks, studies."""
