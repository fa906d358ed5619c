"""The measurements on plain options, a model and rows; nothing here reads settings, loads a model or writes a file."""
