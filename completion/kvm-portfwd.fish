# Completion of kvm-portfwd for fish. Install it as /usr/share/fish/vendor_completions.d/kvm-portfwd.fish.
#
# Names of domains can be any text. They are data here from end to end: what a command substitution gives is never
# evaluated, and fish quotes what it inserts. Names that cannot be offered so are left out.

# Prints the names of all domains, one to a line. One that begins with "-" would be read as an option.
function __kvm_portfwd_domains
    for uri in (__kvm_portfwd_uris)
        timeout 2 virsh --readonly --quiet --connect $uri list --all --name </dev/null 2>/dev/null |
            string match --invert --regex '^-|^$|[[:cntrl:]]'
    end
end

# Prints the URIs that the configuration names, one to a line; only such as need no password and no other host.
function __kvm_portfwd_uris
    set --local file /etc/portfwd.toml
    set --local words (commandline --tokenize --current-process --cut-at-cursor)
    if set --local index (contains --index -- --config $words)
        set file $words[(math $index + 1)]
    else if set --local joined (string replace --filter --regex '^--config=' '' -- $words)
        set file $joined[1]
    end
    set --local uris (cat $file 2>/dev/null | string match --invert --regex '^\s*#' |
        string match --all --regex --groups-only '["\']((?:qemu|lxc|xen|test)(?:\+unix)?:///[A-Za-z0-9/_-]*)["\']')
    set --query uris[1]; or set uris qemu:///system
    printf '%s\n' $uris
end

# Prints the host's addresses, up to the port.
function __kvm_portfwd_addresses
    for address in (ip -brief address show scope global 2>/dev/null | string match --all --regex '[0-9a-f.:]+(?=/[0-9]+)')
        string match --quiet '*:*' $address; and echo "[$address]:"; or echo "$address:"
    end
end

function __kvm_portfwd_command --argument-names name text
    complete --command kvm-portfwd --condition __fish_use_subcommand --arguments $name --description $text
end

function __kvm_portfwd_argument --argument-names name
    complete --command kvm-portfwd --condition "__fish_seen_subcommand_from $name" $argv[2..]
end

complete --command kvm-portfwd --no-files
complete --command kvm-portfwd --short-option h --long-option help --description 'show how it is used'
complete --command kvm-portfwd --condition __fish_use_subcommand --long-option version --description 'show the version'
complete --command kvm-portfwd --condition 'not __fish_use_subcommand' \
    --long-option config --require-parameter --force-files --description 'another configuration'

__kvm_portfwd_command run 'run the daemon in the foreground'
__kvm_portfwd_command check 'say whether the configuration is right'
__kvm_portfwd_command status 'show what is reachable, and why the rest is not'
__kvm_portfwd_command plan 'show what would change in the kernel now'
__kvm_portfwd_command rules 'print the rules that would be written now'
__kvm_portfwd_command explain 'say where a connection would stop, and why'
__kvm_portfwd_command fleet 'read and change the table that many hosts share'
__kvm_portfwd_command import 'turn what another tool keeps into a configuration'
__kvm_portfwd_command port 'print the ports of the host that lead to a domain'
__kvm_portfwd_command reload 'have the daemon read its configuration again'
__kvm_portfwd_command confirm 'keep what reload --confirm loaded'
__kvm_portfwd_command open 'open ports to a domain for a while'
__kvm_portfwd_command close 'close what was opened for a while'
__kvm_portfwd_command flush 'take away all that is ours'

__kvm_portfwd_argument check --force-files
__kvm_portfwd_argument import --force-files
__kvm_portfwd_argument fleet --force-files --arguments 'list put get delete status'
__kvm_portfwd_argument status --arguments '(__kvm_portfwd_domains)' --description domain
__kvm_portfwd_argument port --arguments '(__kvm_portfwd_domains)' --description domain
__kvm_portfwd_argument open --arguments '(__kvm_portfwd_domains)' --description domain
__kvm_portfwd_argument close --arguments '(__kvm_portfwd_domains)' --description domain
__kvm_portfwd_argument explain --arguments '(__kvm_portfwd_addresses)'
for name in status plan explain fleet port reload confirm open close
    __kvm_portfwd_argument $name --long-option json --description 'write JSON'
end
__kvm_portfwd_argument status --long-option watch --description 'show it again each time it changes'
__kvm_portfwd_argument port --long-option port-only --description 'print the number of one port alone'
__kvm_portfwd_argument explain --long-option from --exclusive --description 'who connects'
__kvm_portfwd_argument open --long-option from --exclusive --description 'who may connect'
__kvm_portfwd_argument open --long-option for --exclusive --description 'for how long'
__kvm_portfwd_argument reload --long-option confirm --exclusive --description 'bring the one before back unless confirmed'
__kvm_portfwd_argument plan --long-option exit-code --description 'exit with 3 if anything would change'
functions --erase __kvm_portfwd_command __kvm_portfwd_argument
