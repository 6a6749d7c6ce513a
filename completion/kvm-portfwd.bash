# Completion of kvm-portfwd for bash. Install it as /usr/share/bash-completion/completions/kvm-portfwd, or source it.
#
# Names of domains can be any text. They are data here from end to end: nothing is ever evaluated, and what is offered
# is quoted for the command line. Names that cannot be offered so are left out.

_kvm_portfwd() {
    local IFS=$' \t\n' word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]}
    COMPREPLY=()
    # For readline, the "=" of an option is a word.
    [[ $before == = ]] && before=${COMP_WORDS[COMP_CWORD - 2]}
    if ((COMP_CWORD == 1)); then
        _kvm_portfwd_words "run check status plan rules explain fleet import port reload confirm open close flush --help --version"
    elif [[ $before == --config ]]; then
        compopt -o default
    elif [[ $before == --from || $before == --for ]] || [[ $before == --confirm && $command == reload ]]; then
        return # any address, of which nothing is known here, or a time
    elif [[ $word == -* ]]; then
        _kvm_portfwd_words "--config --help $(_kvm_portfwd_options "$command")"
    else
        _kvm_portfwd_arguments "$command"
    fi
}

_kvm_portfwd_options() {
    case $1 in
        status) echo --json --watch ;;
        plan) echo --exit-code --json ;;
        explain) echo --from --json ;;
        port) echo --json --port-only ;;
        reload) echo --confirm --json ;;
        confirm | close | fleet) echo --json ;;
        open) echo --for --from --json ;;
    esac
}

_kvm_portfwd_arguments() {
    case $1 in
        check | import) compopt -o default ;;
        fleet) ((COMP_CWORD == 2)) && _kvm_portfwd_words "list put get delete status" || compopt -o default ;;
        status | port | open | close) _kvm_portfwd_domains ;;
        explain) _kvm_portfwd_addresses ;;
    esac
}

# Offers those of some words, none of which is text from outside, that begin as the word at the cursor does.
_kvm_portfwd_words() {
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$word")
}

_kvm_portfwd_domains() {
    local uri name
    while IFS= read -r uri; do
        while IFS= read -r name; do
            _kvm_portfwd_domain "$name"
        done < <(timeout 2 virsh --readonly --quiet --connect "$uri" list --all --name </dev/null 2>/dev/null)
    done < <(_kvm_portfwd_uris)
}

# Offers a name, written so that the shell reads it as it is.
_kvm_portfwd_domain() {
    local quoted=
    # A name that begins with "-" would be read as an option.
    [[ -z $1 || $1 == -* || $1 == *[[:cntrl:]]* ]] && return
    case $word in
        \"*) [[ $1 != *[\"\$\`\\!]* ]] && quoted=\"$1 ;;
        \'*) [[ $1 != *\'* ]] && quoted=\'$1 ;;
        *)
            printf -v quoted %q "$1"
            # These would end the word for readline (COMP_WORDBREAKS), although not for the shell.
            quoted=${quoted//:/\\:} quoted=${quoted//=/\\=} quoted=${quoted//@/\\@}
            ;;
    esac
    # Within quotes, readline replaces what follows the opening one.
    [[ $quoted && $quoted == "$word"* ]] && COMPREPLY+=("${quoted#[\"\']}")
}

# Prints the URIs that the configuration names, one to a line; only such as need no password and no other host.
_kvm_portfwd_uris() {
    local file=/etc/portfwd.toml index uris
    for ((index = 2; index < COMP_CWORD; index++)); do
        [[ ${COMP_WORDS[index]} == --config ]] && file=${COMP_WORDS[index + 1]}
        [[ ${COMP_WORDS[index]} == = ]] && file=${COMP_WORDS[index + 1]}
    done
    uris=$(grep -v '^[[:space:]]*#' -- "$file" 2>/dev/null |
        grep -Eo "[\"'](qemu|lxc|xen|test)([+]unix)?:///[A-Za-z0-9/_-]*[\"']" | tr -d \"\')
    printf '%s\n' "${uris:-qemu:///system}"
}

# Offers the host's addresses, up to the port.
_kvm_portfwd_addresses() {
    local whole=${COMP_LINE:0:COMP_POINT} address
    whole=${whole##*[[:blank:]]}
    compopt -o nospace
    for address in $(ip -brief address show scope global 2>/dev/null | grep -Eo '[0-9a-f.:]+/[0-9]+'); do
        address=${address%/*}
        [[ $address == *:* ]] && address=[$address]
        # A colon ends a word for readline, so what stands before the last one is kept.
        [[ $address: == "$whole"* ]] && address=$address: && COMPREPLY+=("${address#"${whole%"${whole##*:}"}"}")
    done
}

complete -F _kvm_portfwd kvm-portfwd
