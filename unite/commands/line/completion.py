"""``unite completion``: commands, options, configs and models, for the shell to complete."""

from typing import Literal

from unite.commands import COMMANDS
from unite.commands.line.source import command_options, keyword_options, model_options, trainer_options
from unite.commands.line.typed import MODEL_COMMANDS
from unite.files.shipped import shipped_configs, shipped_models

SCRIPT = """# unite's words for {shell}: put `eval "$(unite completion {shell})"` into ~/.{shell}rc
{preamble}_unite_words() {{
  case "$1" in
{cases}
    *) echo "{commands}" ;;
  esac
}}
_unite() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}"
  COMPREPLY=($(compgen -W "$(_unite_words "${{COMP_WORDS[1]}}")" -- "$word"))
  if [[ "$word" != -* && $COMP_CWORD -gt 1 ]]; then COMPREPLY+=($(compgen -f -- "$word")); fi
}}
complete -o filenames -F _unite unite
"""


def completion(shell: Literal["bash", "zsh"]) -> None:
    """Print a script with which the shell completes commands, options, and names of configs and models.

    Args:
        shell: The shell.
    """
    cases = "\n".join(f'    {name}) echo "{" ".join(_words(name))}" ;;' for name in COMMANDS)
    preamble = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    print(SCRIPT.format(shell=shell, preamble=preamble, cases=cases, commands=" ".join(COMMANDS)), end="")


def _words(command: str) -> list[str]:
    if command in MODEL_COMMANDS:
        own = [*command_options(command).arguments, "config", "ckpt_path", "seed", "device", "help", "help-all"]
        prefixed = [*(f"trainer.{name}" for name in trainer_options()), *(f"model.{name}" for name in model_options())]
        names = [name for name in shipped_configs() if "/" not in name] if command == "fit" else list(shipped_models())
        return [*names, *sorted({f"--{name}" for name in (*own, *prefixed)})]
    words = COMMANDS[command].functions
    options = {f"--{option}" for word in words for option in keyword_options(*COMMANDS[command].place(word))}
    return [*filter(None, words), *sorted(options)]
