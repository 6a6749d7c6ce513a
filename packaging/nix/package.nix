# kvm-portfwd for Nix: `pkgs.callPackage ./package.nix { }` in a checkout.
{ lib, python3Packages, coreutils, installShellFiles }:

python3Packages.buildPythonApplication {
  pname = "kvm-portfwd";
  version = lib.head (builtins.match ''.*__version__ = "([^"]+)".*'' (builtins.readFile ../../fwdaemon/__init__.py));
  pyproject = true;
  src = ../..;

  build-system = [ python3Packages.hatchling ];
  dependencies = with python3Packages; [
    json5
    libvirt
    prometheus-client
    pyroute2
    python-iptables
    rich
    tomli
    tomlkit
    watchdog
  ];
  nativeBuildInputs = [ installShellFiles ];
  # The tests need root, libvirt and network namespaces.
  doCheck = false;

  postInstall = ''
    install -D -m 644 -t $out/lib/systemd/system systemd/kvm-portfwd.service
    substituteInPlace $out/lib/systemd/system/kvm-portfwd.service \
      --replace-fail /usr/bin/kvm-portfwd $out/bin/kvm-portfwd \
      --replace-fail /bin/kill ${coreutils}/bin/kill
    install -D -m 644 systemd/kvm-portfwd.tmpfiles $out/lib/tmpfiles.d/kvm-portfwd.conf
    install -D -m 644 -t $out/lib/systemd/catalog systemd/kvm-portfwd.catalog
    installManPage man/kvm-portfwd.8 man/portfwd.toml.5
    installShellCompletion completion/kvm-portfwd.{bash,fish,zsh}
  '';

  meta = {
    description = "Port forwards and public addresses for libvirt guests";
    license = lib.licenses.asl20;
    mainProgram = "kvm-portfwd";
    platforms = lib.platforms.linux;
  };
}
