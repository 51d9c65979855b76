"""What a person sees: command line, report, design page, callbacks, studies."""
