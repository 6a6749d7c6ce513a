#compdef kvm-portfwd
# Completion of kvm-portfwd for zsh. Install it as _kvm-portfwd in a directory of $fpath, such as
# /usr/share/zsh/vendor-completions.
#
# Names of domains can be any text. They are data here from end to end: nothing is ever evaluated, and compadd quotes
# what it inserts. Names that cannot be offered so are left out.

_kvm-portfwd() {
    local curcontext=$curcontext state line
    local -A opt_args
    local -a help=('(- *)'{-h,--help}'[show how it is used]')
    _arguments -C $help '(- *)--version[show the version]' '1:command:_kvm-portfwd_commands' '*::argument:->argument'
    [[ $state == argument ]] || return
    local -a options=($help '--config=[another configuration]:file:_files')
    local json='--json[write JSON]'
    case $words[1] in
        (check) _arguments $options ':file:_files' ;;
        (status) _arguments $options $json '--watch[show it again each time it changes]' '*:domain:_kvm-portfwd_domains' ;;
        (plan) _arguments $options $json '--exit-code[exit with 3 if anything would change]' ;;
        (explain) _arguments $options $json '--from=[who connects]:address:' ':address:_kvm-portfwd_addresses' ;;
        (port) _arguments $options $json '--port-only[print the number of one port alone]' \
            ':domain:_kvm-portfwd_domains' ':port of the guest:' ;;
        (reload) _arguments $options $json '--confirm=[bring the configuration before back unless confirm follows]:time:' ;;
        (confirm) _arguments $options $json ;;
        (open) _arguments $options $json '--for=[for how long]:time:' '*--from=[who may connect]:address:' \
            ':domain:_kvm-portfwd_domains' '*:port:' ;;
        (close) _arguments $options $json ':domain:_kvm-portfwd_domains' '*:port:' ;;
        (fleet) _arguments $options $json ':action:(list put get delete status)' ':entry:' ':file:_files' ;;
        (import) _arguments $options '*:file:_files' ;;
        (*) _arguments $options ;;
    esac
}

_kvm-portfwd_commands() {
    local -a commands=(
        'run:run the daemon in the foreground'
        'check:say whether the configuration is right'
        'status:show what is reachable, and why the rest is not'
        'plan:show what would change in the kernel now'
        'rules:print the rules that would be written now'
        'explain:say where a connection would stop, and why'
        'fleet:read and change the table that many hosts share'
        'import:turn what another tool keeps into a configuration'
        'port:print the ports of the host that lead to a domain'
        'reload:have the daemon read its configuration again'
        'confirm:keep what reload --confirm loaded'
        'open:open ports to a domain for a while'
        'close:close what was opened for a while'
        'flush:take away all that is ours'
    )
    _describe command commands
}

_kvm-portfwd_domains() {
    local uri expl
    local -a names
    for uri in ${(f)"$(_kvm-portfwd_uris)"}; do
        names+=(${(f)"$(timeout 2 virsh --readonly --quiet --connect $uri list --all --name </dev/null 2>/dev/null)"})
    done
    # One that begins with "-" would be read as an option.
    names=(${names:#-*})
    names=(${names:#*[[:cntrl:]]*})
    _wanted domains expl domain compadd -a names
}

# Prints the URIs that the configuration names, one to a line; only such as need no password and no other host.
_kvm-portfwd_uris() {
    local file=${(Q)opt_args[--config]:-/etc/portfwd.toml}
    local uris=$(grep -v '^[[:space:]]*#' -- $file 2>/dev/null |
        grep -Eo "[\"'](qemu|lxc|xen|test)([+]unix)?:///[A-Za-z0-9/_-]*[\"']" | tr -d \"\')
    print -r -- ${uris:-qemu:///system}
}

# Offers the host's addresses, up to the port.
_kvm-portfwd_addresses() {
    local address expl
    local -a addresses
    for address in ${(f)"$(ip -brief address show scope global 2>/dev/null | grep -Eo '[0-9a-f.:]+/[0-9]+')"}; do
        address=${address%/*}
        [[ $address == *:* ]] && address="[$address]"
        addresses+=($address)
    done
    _wanted addresses expl address compadd -S : -a addresses
}

_kvm-portfwd "$@"
