"""From a finished run to a folder that others can load: stock export, model card, chat Space, push."""
