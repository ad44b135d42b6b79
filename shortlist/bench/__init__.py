"""What `shortlist bench` measures, one subject a module; the commands themselves are `shortlist.commands.bench`."""
